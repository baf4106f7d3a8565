"""How soon 1,000 rollouts in real stages stop when they are cancelled, and what is sampled after.

    python -m bench.cancel --json

Measured, with every process of rollmq real and `durability: power`: 900 rollouts in the agent loop
and 50 judged by the model, each of these with a generation under way on one of four simulated
backends; 50 wait in init, as for a sandbox. All are cancelled by one call. By the system's
monotonic clock, which all processes of this machine share:

  stopped    from the call until a rollout's handler was over and its generation aborted on the
             backend, whichever was later
  receipts   from the call until its answer, with all receipts durable
  wasted     tokens that the backends sampled after the call

`bench.latency` measures the same for stages that do nothing. Not measured: a network, sandboxes
(tests/chaos has them), and a model: the simulator samples as fast as its table says, on the cores
that everything else runs on, too.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import noting_simulator
from bench.bus import ROOT
from bench.cancel_stages import CONTEXT_TOKENS, Note, notes
from bench.measure import json_line, percentile, table, write_results
from engine import Client, Task, load, supervisor
from engine.messages import Cancelled
from engine.supervisor import Supervisor

STAY = {"eval": 50, "run": 900, "init": 50}  # rollouts, in the order in which they are submitted
GENERATING = STAY["run"] + STAY["eval"]
ATTEMPTS = {"init": 1, "run": 2, "eval": 3}  # of a rollout, of which none has failed
RUNNING = 0.95  # of all generations: between two turns a rollout has none for a moment
WORKERS, BACKENDS = 4, 4
GOAL_MS = 250.0
MEMORY = "/dev/shm"  # notes on the journal's disk would wait for its syncs, and be late themselves
PATIENCE_S = 300.0
LOOK_S = 0.1
TEXT = f"""
version: 1
name: cancel
run_dir: r
durability: power
log_level: warning
timeouts: {{lease_s: 60}} # a machine that is late is no failure of what is measured here
limits: {{client_window: 4096}}
stages:
  - {{name: init, slots: 100, timeout_s: 3600}}
  - name: run
    slots: {STAY["run"] // WORKERS}
    workers: {WORKERS}
    ready: 1000
    timeout_s: 3600
  - {{name: eval, slots: 100, ready: 1000, timeout_s: 3600}}
router: {{}}
backends:
  - name: sim
    kind: simulator
    count: {BACKENDS}
    capacity: 256
    options:
      script: filler
      speed: 0.25 # 35 tokens/s for each of 240 generations
      block_tokens: 128
      context_tokens: {CONTEXT_TOKENS}
      cache_tokens: 4194304
"""


@dataclass(frozen=True, slots=True)
class Round:
    """One cancel: milliseconds from the call, and tokens.

    stopped: of each rollout, by stage. wasted_tokens: sampled after the call. counted_tokens: in
    the receipts.
    """

    stopped: dict[str, list[float]]
    receipts_ms: float
    wasted_tokens: int
    counted_tokens: int

    @property
    def every_ms(self) -> list[float]:
        """The times of all stages."""
        return [each for stage in self.stopped.values() for each in stage]


def main() -> None:
    """Run the bench and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3, help="cancels of 1,000 rollouts each")
    parser.add_argument("--seconds", type=float, default=5.0, help="of sampling before each")
    parser.add_argument("--json", action="store_true", help="one line of JSON last")
    options = parser.parse_args()
    with running() as path, Client(path, window=4096) as client:
        rounds = [measure(client, path, options.seconds) for _ in range(options.rounds)]
    figures = {**summed(rounds), "in_stages": STAY, "goal_ms": GOAL_MS}
    print(table(("stage", "rollouts", "p50 ms", "p99 ms", "max ms"), rows(rounds)))
    write_results("cancel", figures)
    if options.json:
        print(json_line(figures))


@contextmanager
def running() -> Iterator[Path]:
    """Start the topology, its simulators noting what they sample; yield its file."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(paths)))
    supervisor.BACKEND_MODULES["simulator"] = noting_simulator.__name__
    with tempfile.TemporaryDirectory(prefix="rq") as folder:
        path = Path(folder) / "t.yaml"
        path.write_text(TEXT, encoding="utf-8")
        with Supervisor(load(path)) as launcher:
            launcher.wait_ready(120)
            yield path


def measure(client: Client, path: Path, seconds: float) -> Round:
    """Fill every stage, let it sample for a while, and cancel everything."""
    run_dir, nodes = load(path).run_dir, [f"sim-{number}" for number in range(BACKENDS)]
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        file = Path(folder) / "notes"
        _fill(client, file)
        _sample(run_dir, nodes, seconds)
        began = time.monotonic()
        answer = client.cancel(everything=True)
        receipts_ms = (time.monotonic() - began) * 1e3
        over = notes(file, "over")
        _check(answer, over)
        before = noting_simulator.sampled(run_dir, nodes, began)
        wasted = noting_simulator.sampled(run_dir, nodes) - before
    for rollout in client.rollouts():
        assert rollout.outcome == "cancelled", rollout
    aborts = noting_simulator.aborted(run_dir, nodes, began)
    assert len(aborts) >= RUNNING * GENERATING, len(aborts)
    stopped: dict[str, list[float]] = {stage: [] for stage in STAY}
    for note in over:
        at = max(note.at, aborts.get(f"{note.rollout_id}.{ATTEMPTS[note.stage]}", 0.0))
        stopped[note.stage].append((at - began) * 1e3)
    counted = sum(receipt.usage.tokens for receipt in answer.receipts)
    return Round(stopped, receipts_ms, wasted, counted)


def _fill(client: Client, file: Path) -> None:
    for stage, count in STAY.items():
        payload = {"stay": stage, "notes": str(file)}
        for number in range(count // 50):
            client.submit(Task(f"{stage}-{number}", "bench.cancel_stages", payload), 50)
    _until(lambda: len(notes(file, "there")) == sum(STAY.values()), "every handler to begin")
    _until(lambda: _running(client) >= RUNNING * GENERATING, "generations")


def _running(client: Client) -> float:
    """Return how many generations are under way, as the router told last."""
    nodes = {each["node"]: each["figures"] for each in client.status()["nodes"]}
    return float(nodes.get("router", {}).get("running", 0.0))


def _sample(run_dir: Path, nodes: list[str], seconds: float) -> None:
    """Wait while the backends sample; every one of them has to."""
    before = [noting_simulator.sampled(run_dir, [node]) for node in nodes]
    time.sleep(seconds)
    after = [noting_simulator.sampled(run_dir, [node]) for node in nodes]
    assert all(late > early for early, late in zip(before, after, strict=True)), (before, after)


def _check(answer: Cancelled, over: list[Note]) -> None:
    """Make sure that everything was running, was stopped, and has its receipt."""
    every = sum(STAY.values())
    assert len(answer.receipts) == len(over) == every, (len(answer.receipts), len(over))
    assert not answer.ended
    assert all(receipt.running for receipt in answer.receipts)
    found = {stage: sum(each.stage == stage for each in answer.receipts) for stage in STAY}
    assert found == STAY, found


def _until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:g} s for {what}")
        time.sleep(LOOK_S)


def summed(rounds: list[Round]) -> dict[str, Any]:
    """Return the figures of all rounds together; wasted tokens are those of the worst."""
    every = [each for one in rounds for each in one.every_ms]
    return {
        "p50_ms": percentile(every, 50),
        "p99_ms": percentile(every, 99),
        "max_ms": max(every),
        "max_ms_of_rounds": [max(one.every_ms) for one in rounds],
        "receipts_ms": [one.receipts_ms for one in rounds],
        "cancelled": sum(STAY.values()),
        "rounds": len(rounds),
        "wasted_tokens": max(one.wasted_tokens for one in rounds),
        "counted_tokens": [one.counted_tokens for one in rounds],
    }


def rows(rounds: list[Round]) -> Iterator[tuple[str, int, float, float, float]]:
    """Yield a table's rows: handlers by stage, all of them, and the answers."""
    for stage, count in STAY.items():
        times = [each for one in rounds for each in one.stopped[stage]]
        yield stage, count, percentile(times, 50), percentile(times, 99), max(times)
    every = [each for one in rounds for each in one.every_ms]
    yield "all", sum(STAY.values()), percentile(every, 50), percentile(every, 99), max(every)
    answers = [one.receipts_ms for one in rounds]
    yield "receipts", sum(STAY.values()), percentile(answers, 50), max(answers), max(answers)


if __name__ == "__main__":
    main()
