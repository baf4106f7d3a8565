"""What clients notice when a backend is killed under load, and how a new one is taken up.

    python -m bench.failover --seconds 12 --json

Measured: rollouts of eight turns on three simulated backends, 48 at a time, with every process of
rollmq real. One backend is killed with SIGKILL: attempts and rollouts that failed because of it,
and the time until as many rollouts end a second as before. Its launcher starts it again, as in any
run. Then a fourth backend is added with `client.add_backend`: its share of the sessions that are
placed, second by second, from the moment at which it is open.

Not measured: a model. The simulator's latency is that of a formula, so throughput before and after
says nothing about an inference server, only how soon the work goes on elsewhere.

With `--vllm-router PROGRAM` the same is done to vllm-router (bench/vllm_router.py), or its
figures are null.
"""

import argparse
import itertools
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import vllm_router
from bench.bus import ROOT
from bench.measure import json_line, table, write_results
from engine import Client, Rollout, Task, load
from engine.supervisor import Supervisor

BACKENDS, IN_FLIGHT, TURNS = 3, 48, 8
SPEED = 2.0
WARMUP_S = 4.0
WINDOW_S = 1.0
RECOVERED = 0.9  # of the median second before
OPEN_S = 60.0
LOOK_S = 0.2
TEXT = f"""
version: 1
name: failover
run_dir: r
durability: process
log_level: warning
timeouts: {{heartbeat_s: 1}}
stages:
  - {{name: run, slots: {IN_FLIGHT}}}
router: {{}}
backends:
  - {{name: sim, kind: simulator, count: {BACKENDS}, capacity: 32, options: {{speed: {SPEED}}}}}
"""


@dataclass(slots=True)
class Record:
    """What happened, by the monotonic clock."""

    ended: list[float] = field(default_factory=list)
    errors: int = 0
    killed_at: float = 0.0
    placed: list[tuple[float, int, int]] = field(default_factory=list)  # when, there, everywhere


Seen = Record | vllm_router.Sessions


def main() -> None:
    """Run the bench and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="of each of the three parts")
    parser.add_argument("--vllm-router", default="", help="the program, for the reference")
    parser.add_argument("--json", action="store_true", help="one line of JSON last")
    options = parser.parse_args()
    with running() as (path, supervisor):
        record = measure(path, supervisor, options.seconds)
    figures = {
        "client_errors": record.errors,
        "recovery_s": recovery_s(record),
        "new_backend_share": share(record.placed),
        "fair_share": 1 / (BACKENDS + 1),
        "rollouts_per_s_before": statistics.median(rates_before(record)),
        "rollouts": len(record.ended),
        **reference(options.vllm_router, options.seconds),
    }
    by_second = shares_by_second(record.placed)
    print(table(["figure", "value"], figures.items()))
    print(table(["second", "share of new sessions"], enumerate(by_second, 1)))
    write_results("failover", {**figures, "new_backend_share_by_second": by_second})
    if options.json:
        print(json_line({**figures, "new_backend_share_by_second": by_second}))


def reference(router: str, seconds: float) -> dict[str, float | None]:
    """Return vllm-router's figures under the same load, or nothing where it is not."""
    names = ("client_errors", "recovery_s", "new_backend_share")
    if not router:
        print("vllm-router: not measured, no --vllm-router")
        return dict.fromkeys([f"vllm_router_{name}" for name in names])
    seen = vllm_router.measure(router, BACKENDS, IN_FLIGHT, TURNS, seconds)
    figures = (float(seen.errors), recovery_s(seen), share(seen.placed))
    return {f"vllm_router_{name}": value for name, value in zip(names, figures, strict=True)}


@contextmanager
def running() -> Iterator[tuple[Path, Supervisor]]:
    """Start the topology; yield its file and its launcher."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(paths)))
    with tempfile.TemporaryDirectory(prefix="rq") as folder:
        path = Path(folder) / "t.yaml"
        path.write_text(TEXT, encoding="utf-8")
        with Supervisor(load(path)) as supervisor:
            supervisor.wait_ready(OPEN_S)
            with Client(path) as client:
                until_open(client, {f"sim-{n}" for n in range(BACKENDS)})
            yield path, supervisor


def until_open(client: Client, wanted: set[str]) -> None:
    """Wait until these backends are open.

    Raises: TimeoutError.
    """
    deadline = time.monotonic() + OPEN_S
    while not wanted <= {state.name for state in client.backends() if state.state == "open"}:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{wanted} were not all open within {OPEN_S:g} s")
        time.sleep(0.05)


class Scene:
    """The load, and what is done to the backends meanwhile."""

    def __init__(self, operator: Client, supervisor: Supervisor, seconds: float) -> None:
        self.record = Record()
        self._operator = operator
        self._supervisor = supervisor
        self._seconds = seconds
        self._kill_at = time.monotonic() + WARMUP_S + seconds
        self._add_at = self._kill_at + seconds
        self._ends_at = self._add_at + seconds + OPEN_S
        self._added = False
        self._look_at = 0.0

    def tasks(self) -> Iterator[Task]:
        """Yield tasks until the last part is over."""
        for number in itertools.count():
            if time.monotonic() > self._ends_at:
                return
            yield Task(str(number), "bench.talks", {"turns": TURNS})

    def ended(self, rollout: Rollout) -> None:
        """Note a rollout, and each of its failed attempts, or its end other than completed."""
        self.record.ended.append(time.monotonic())
        self.record.errors += len(rollout.failures) + (rollout.outcome != "completed")
        self.act()

    def act(self) -> None:
        """Do what it is time for."""
        now = time.monotonic()
        self._supervisor.watch()
        if not self.record.killed_at and now >= self._kill_at:
            self.record.killed_at = now
            os.kill(self._supervisor.pids["sim-0"], signal.SIGKILL)
        if now >= self._add_at and not self._added:
            self._added = True
            options = {"speed": SPEED}
            self._operator.add_backend(options, kind="simulator", name="new", capacity=32)
        if self._added and self._look_at <= now <= self._ends_at:
            self._look_at = now + LOOK_S
            self._look()

    def _look(self) -> None:
        """Note how many sessions were placed on the new backend, once it is open."""
        states = {state.name: state for state in self._operator.backends()}
        new = states.get("new-0")
        if new is None or new.state != "open":
            return
        everywhere = sum(int(state.figures.get("placed", 0)) for state in states.values())
        there = int(new.figures.get("placed", 0))
        if not self.record.placed:
            self._ends_at = time.monotonic() + self._seconds
        self.record.placed.append((time.monotonic(), there, everywhere))


def measure(path: Path, supervisor: Supervisor, seconds: float) -> Record:
    """Keep the load up, kill a backend after a while, and add one after another while."""
    with Client(path) as client, Client(path) as operator:
        scene = Scene(operator, supervisor, seconds)
        for rollout in client.run(scene.tasks(), in_flight=IN_FLIGHT, idle=scene.act):
            scene.ended(rollout)
    return scene.record


def rates_before(record: Seen) -> list[int]:
    """Return the rollouts that ended in each whole window between warm-up and kill."""
    start = record.ended[0] + WARMUP_S
    windows = int((record.killed_at - start) / WINDOW_S)
    return [ended_in(record, start + n * WINDOW_S) for n in range(windows)]


def ended_in(record: Seen, start: float) -> int:
    """Count the rollouts that ended within a window."""
    return sum(start <= at < start + WINDOW_S for at in record.ended)


def recovery_s(record: Seen) -> float:
    """Return the seconds from the kill to the first window that is as good as before.

    A window counts from its end: 1 s is the least that there is.

    Raises: ValueError if there is none.
    """
    wanted = RECOVERED * statistics.median(rates_before(record))
    for start in record.ended:
        if start >= record.killed_at and ended_in(record, start) >= wanted:
            return start + WINDOW_S - record.killed_at
    raise ValueError("throughput did not come back")


def share(placed: list[tuple[float, int, int]]) -> float:
    """Return the new backend's share of all sessions placed while it was open."""
    (_, there, everywhere), (_, there_after, everywhere_after) = placed[0], placed[-1]
    return (there_after - there) / max(1, everywhere_after - everywhere)


def shares_by_second(placed: list[tuple[float, int, int]]) -> list[float]:
    """Return the same for each second from its opening on."""
    began, found = placed[0][0], []
    for second in range(int(placed[-1][0] - began)):
        edges = [_last(placed, began + second), _last(placed, began + second + 1)]
        found.append(round(share(edges), 3))
    return found


def _last(placed: list[tuple[float, int, int]], at: float) -> tuple[float, int, int]:
    return max(each for each in placed if each[0] <= at)


if __name__ == "__main__":
    main()
