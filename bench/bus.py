"""rollmq as a candidate: a real topology of its own for each run, in a directory of its own."""

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from bench import workload
from bench.measure import Meter, ReferenceResult
from engine import Client, Task, load
from engine.supervisor import Supervisor

GROUP = 8
ROOT = Path(__file__).resolve().parent.parent
TEXT = """
version: 1
name: bench
run_dir: r
durability: {durability}
log_level: warning
timeouts: {{heartbeat_s: {heartbeat_s}}}
limits: {{client_window: 1024, retention_s: 60}}
stages:
  - {{name: init, slots: {slots}, workers: {workers}, timeout_s: 3600}}
  - {{name: run, slots: {slots}, workers: {workers}, timeout_s: 3600}}
  - {{name: eval, slots: {slots}, workers: {workers}, timeout_s: 3600}}
"""


@contextmanager
def running(
    durability: str, slots: int, workers: int = 1, heartbeat_s: float = 2.0
) -> Iterator[tuple[Path, Supervisor]]:
    """Start a topology whose stages serve `bench.kinds`; yield its file and its launcher."""
    text = TEXT.format(durability=durability, slots=slots, workers=workers, heartbeat_s=heartbeat_s)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(paths)))
    with tempfile.TemporaryDirectory(prefix="rq") as folder:
        path = Path(folder) / "t.yaml"
        path.write_text(text, encoding="utf-8")
        with Supervisor(load(path)) as supervisor:
            supervisor.wait_ready(60)
            yield path, supervisor


@contextmanager
def topology(durability: str, slots: int) -> Iterator[Path]:
    """Start a topology and yield its file."""
    with running(durability, slots) as (path, _):
        yield path


def run(durability: str, seconds: float, in_flight: int, tokens: int) -> ReferenceResult:
    """Measure the bus for `seconds` after its warm-up.

    Raises:
        WrongRolloutError: a rollout arrived that is not the one asked for.
        RollmqError: the topology could not be kept up.

    """
    started: dict[int, float] = {}
    with topology(durability, slots=in_flight) as path, Client(path, window=1024) as client:
        meter = Meter(f"rollmq_{durability}", seconds)
        going = True

        def tasks() -> Iterator[Task]:
            for number in itertools.count():
                if not going:
                    return
                started[number] = perf_counter()
                yield Task(str(number), "bench.kinds", {"task_id": number, "tokens": tokens})

        for rollout in client.run(tasks(), GROUP, in_flight=in_flight):
            number = int(rollout.task_id)
            assert rollout.trajectory is not None, rollout
            assert rollout.reward is not None, rollout
            made = workload.Trajectory(
                rollout.trajectory.token_ids,
                rollout.trajectory.logprobs,
                rollout.trajectory.loss_mask,
            )
            workload.check(number, made, rollout.reward, tokens)
            going = meter.finished(started[number]) and going
    return meter.result()
