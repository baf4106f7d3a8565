"""Reference: Ray actors that pass object references, one actor a stage.

The driver is the client: it chains init, run and eval by reference and receives the arrays and the
reward. An actor answers one caller in order, so the driver takes the oldest rollouts, a few at a
time, instead of asking Ray which are ready. Arrays stay below Ray's 100 KB limit for inline
results; its shared-memory store, forced, halves the pace. Task events, metrics and the workers'
niceness are off: together they cost about a fifth on two cores.
"""

import logging
import os
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import workload
from bench.measure import Meter, ReferenceResult
from bench.processes import CandidateError
from bench.references import main
from bench.workload import Trajectory

os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_task_events_report_interval_ms": "0",
        "RAY_worker_niceness": "0",
    }
)
import ray  # it reads its settings when imported

NAME = "ray_actors"
TAKEN_TOGETHER = 8  # rollouts a call of ray.get
ANSWER_S = 60.0
Arrays = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class UnderWay:
    """One rollout: when it was submitted, and references to its arrays and its reward."""

    task_id: int
    started: float
    arrays: Any
    reward: Any


def run(seconds: float, in_flight: int, tokens: int) -> ReferenceResult:
    """Measure the reference for `seconds` after its warm-up; Ray starts and stops with the call.

    Raises:
        CandidateError: an actor or Ray itself failed or stopped answering.
        WrongRolloutError: a rollout arrived that is not the one asked for.

    """
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
            return _measure(_Actors(tokens), seconds, in_flight)
        except ray.exceptions.RayError as error:
            raise CandidateError(f"{NAME}: {error}") from error
        finally:
            ray.shutdown()


def _measure(actors: "_Actors", seconds: float, in_flight: int) -> ReferenceResult:
    actors.take([actors.submit(0)])
    meter = Meter(NAME, seconds)
    under_way = deque(actors.submit(task_id) for task_id in range(in_flight))
    task_id = in_flight
    wanted = True
    while wanted:
        oldest = [under_way.popleft() for _ in range(min(TAKEN_TOGETHER, in_flight))]
        actors.take(oldest)
        for rollout in oldest:
            wanted = meter.finished(rollout.started)
            under_way.append(actors.submit(task_id))
            task_id += 1
    return meter.result()


class _Actors:
    """The three actors; they share two cores with the driver, so none of them reserves one."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.init = ray.remote(num_cpus=0)(_Init).remote()
        self.run = ray.remote(num_cpus=0)(_Run).remote(tokens)
        self.eval = ray.remote(num_cpus=0)(_Eval).remote()

    def submit(self, task_id: int) -> UnderWay:
        started = perf_counter()
        arrays = self.run.work.remote(self.init.work.remote(task_id))
        return UnderWay(task_id, started, arrays, self.eval.work.remote(arrays))

    def take(self, rollouts: Sequence[UnderWay]) -> None:
        wanted = [reference for item in rollouts for reference in (item.arrays, item.reward)]
        found = ray.get(wanted, timeout=ANSWER_S)
        for item, arrays, reward in zip(rollouts, found[::2], found[1::2], strict=True):
            workload.check(item.task_id, Trajectory(*arrays), reward, self.tokens)


class _Init:
    def work(self, task_id: int) -> NDArray[np.int32]:
        return workload.init(task_id)


class _Run:
    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def work(self, prompt: NDArray[np.int32]) -> Arrays:
        made = workload.run(prompt, self.tokens)
        return made.token_ids, made.logprobs, made.loss_mask


class _Eval:
    def work(self, arrays: Arrays) -> float:
        return workload.evaluate(int(arrays[0][0]), int(arrays[0][-1]))


if __name__ == "__main__":
    main(run)
