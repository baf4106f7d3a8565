"""How long the bus takes to start, to stop and to rest, and what a waiting rollout costs.

Measured on real topologies with `durability: power`; each function starts its own.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import bus
from bench.measure import percentile
from engine import Client, Rollout, Task
from engine.supervisor import Supervisor

FOREVER_S = 3000.0
MEMORY = "/dev/shm"  # notes on the journal's disk would wait for its syncs, and be late themselves


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Milliseconds from "a slot is free and a rollout is ready" to "its handler began"."""

    p50_ms: float
    p99_ms: float
    starts: int
    load: float


@dataclass(frozen=True, slots=True)
class InFlight:
    """What rollouts that are under way cost the broker."""

    rollouts: int
    bytes_per_rollout: float
    submit_s: float


def dispatch(seconds: float, slots: int = 64, work_s: float = 0.2, load: float = 0.8) -> Dispatch:
    """Keep `load` of the run stage's slots busy and measure each start."""
    in_flight = round(slots * load)
    rollouts: list[Rollout] = []
    with bus.topology("power", slots) as path, Client(path, window=1024) as client:
        ends = time.monotonic() + seconds

        def tasks() -> Iterator[Task]:
            for number in itertools.count():
                if time.monotonic() > ends:
                    return
                yield Task(str(number), "bench.kinds", {"sleep_s": work_s})

        rollouts.extend(client.run(tasks(), in_flight=in_flight))
    waits_ms = [wait * 1e3 for wait in waits(rollouts, slots)]
    half = len(waits_ms) // 10
    steady = waits_ms[half:]
    return Dispatch(percentile(steady, 50), percentile(steady, 99), len(steady), load)


def waits(rollouts: list[Rollout], slots: int) -> list[float]:
    """Return how long each run waited for its start though it was ready and a slot was free."""
    events = sorted(
        event
        for rollout in rollouts
        for event in (
            (rollout.data["run"]["began"], 1, rollout.data["init"]["ended"]),
            (rollout.data["run"]["ended"], -1, 0.0),
        )
    )
    busy, full_until, found = 0, 0.0, []
    for at, change, ready in events:
        if change > 0:
            found.append(at - max(ready, full_until))
        elif busy == slots:
            full_until = at
        busy += change
    return found


@dataclass(frozen=True, slots=True)
class Cancel:
    """Milliseconds from the call of `cancel` until the last handler stopped, and until receipts."""

    stopped_p50_ms: float
    stopped_max_ms: float
    receipts_ms: float


def cancel(rollouts: int = 1000) -> Cancel:
    """Cancel that many running rollouts; each handler notes when it was stopped.

    The receipts come when every worker has answered and the broker has made it durable.
    """
    with (
        bus.topology("power", rollouts) as path,
        Client(path, window=4096) as client,
        tempfile.TemporaryDirectory(dir=MEMORY) as folder,
    ):
        starts, stops = Path(folder) / "starts", Path(folder) / "stops"
        starts.touch()
        submit_waiting(client, rollouts, {"starts": str(starts), "stops": str(stops)})
        _until(lambda: len(starts.read_bytes().splitlines()) == rollouts, "every handler to begin")
        began = time.monotonic()
        answer = client.cancel(everything=True)
        receipts_ms = (time.monotonic() - began) * 1e3
        assert len(answer.receipts) == rollouts, len(answer.receipts)
        assert all(receipt.running for receipt in answer.receipts)
        stopped = [float(line) - began for line in stops.read_text(encoding="ascii").split()]
        assert len(stopped) == rollouts, len(stopped)
        for _ in client.rollouts():
            pass
    return Cancel(percentile(stopped, 50) * 1e3, max(stopped) * 1e3, receipts_ms)


def in_flight(rollouts: int = 10_000) -> InFlight:
    """Have that many rollouts leased at once; return what each costs the broker's memory."""
    with bus.topology("power", rollouts) as path, Client(path, window=4096) as client:
        before = client.status()["process"]["rss_bytes"]
        began = time.monotonic()
        submit_waiting(client, rollouts, {})
        took_s = time.monotonic() - began
        after = client.status()["process"]["rss_bytes"]
        client.cancel(everything=True)
        for _ in client.rollouts():
            pass
    return InFlight(rollouts, (after - before) / rollouts, took_s)


def idle(seconds: float = 10.0) -> tuple[float, float]:
    """Return percent of a core that the broker, and all nodes together, use at rest."""
    with bus.running("power", 64) as (path, supervisor), Client(path) as client:
        _settle(supervisor)
        broker, every = client.status()["process"]["cpu_s"], cpu_s(supervisor)
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            time.sleep(0.5)
        passed = time.monotonic() - began
        broker_after, every_after = client.status()["process"]["cpu_s"], cpu_s(supervisor)
    return 100 * (broker_after - broker) / passed, 100 * (every_after - every) / passed


def submit_waiting(client: Client, rollouts: int, notes: dict[str, str]) -> None:
    """Submit rollouts that wait for ever, and wait until all of them are in their run stage."""
    group = 100
    tasks = (
        Task(f"wait-{n}", "bench.kinds", {"sleep_s": FOREVER_S, **notes})
        for n in range(rollouts // group)
    )
    client.submit_all(tasks, group)
    _until(lambda: running(client.status()) == rollouts, f"{rollouts} rollouts to run")


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited 120 s for {what}")
        time.sleep(0.1)


def running(status: dict[str, Any]) -> int:
    """Return how many rollouts the run stage has."""
    return int(next(s["leased"] for s in status["stages"] if s["stage"] == "run"))


def cpu_s(supervisor: Supervisor) -> float:
    """Return the processor time of every node and of the hosts that they started."""
    return sum(_cpu_s(pid) + sum(map(_cpu_s, _children(pid))) for pid in supervisor.pids.values())


def _settle(supervisor: Supervisor) -> None:
    before, deadline = cpu_s(supervisor), time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(1.0)
        after = cpu_s(supervisor)
        if after - before < 0.1:
            return
        before = after


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text(encoding="ascii").split()]
