"""Ray as a candidate of bench.scale: an asyncio actor for each stage on each simulated host.

An actor runs as many calls at once as its host has slots; what waits for one, waits in its actor.
Each host keeps an equal part of the rollouts in flight, so its run slots are as full as rollmq's.
Arrays pass by reference from actor to actor, and actors take calls as their arguments are there, so
no long run holds up a short one. Settings are those of bench/references/ray_actors.py.

Nothing is kept, leased, repeated or acknowledged. Ray is not run over several addresses: its actors
share one node, so no call goes through a second raylet.
"""

import asyncio
import itertools
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import machine, workload
from bench.processes import CandidateError
from bench.references.ray_actors import ANSWER_S, NAME, ray
from bench.scale_shape import EVAL, INIT, Load, Point, Times, Window, run_s
from bench.workload import Trajectory

START_S = 180.0
Prompt = tuple[NDArray[np.int32], float]
Made = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.uint8], float, float, float]


def run(load: Load, seconds: float, warmup_s: float) -> Point:
    """Measure Ray under a load; it starts and stops with the call.

    Raises:
        CandidateError: an actor or Ray itself failed or stopped answering.
        WrongRolloutError: a rollout arrived that is not the one asked for.

    """
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            ray.init(
                num_cpus=os.cpu_count(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
            hosts = [_Host(load) for _ in range(load.hosts)]
            ray.get([ready for host in hosts for ready in host.ready()], timeout=START_S)
            return asyncio.run(_measure(hosts, load, seconds, warmup_s))
        except ray.exceptions.RayError as error:
            raise CandidateError(f"{NAME}: {error}") from error
        finally:
            ray.shutdown()


async def _measure(hosts: "list[_Host]", load: Load, seconds: float, warmup_s: float) -> Point:
    window = Window(load, seconds, warmup_s, machine.spent)
    numbers = itertools.count()
    over = asyncio.Event()
    longest_s = warmup_s + seconds + 100 * load.mean_s + ANSWER_S

    async def place(host: _Host) -> None:
        while not over.is_set():
            if not window.ended(await host.rollout(next(numbers))):
                over.set()

    places = [
        asyncio.create_task(place(hosts[number % len(hosts)])) for number in range(load.in_flight)
    ]
    waiting = asyncio.create_task(over.wait())
    done, _ = await asyncio.wait(
        [waiting, *places], timeout=longest_s, return_when=asyncio.FIRST_COMPLETED
    )
    memory = machine.memory_bytes(machine.tree(os.getpid()))
    for task in (waiting, *places):
        task.cancel()
    ended = await asyncio.gather(*places, return_exceptions=True)
    for outcome in ended:
        if isinstance(outcome, Exception):
            raise outcome
    if not done:
        raise CandidateError(f"{NAME}: the window was still open after {longest_s:.0f} s")
    return window.point(memory)


@dataclass(slots=True)
class _Host:
    """The three actors of one host; none reserves a core, for all share two."""

    load: Load
    init: Any = None
    run: Any = None
    eval: Any = None

    def __post_init__(self) -> None:
        counts = {_Init: self.load.side_slots, _Run: self.load.run_slots}
        self.init, self.run, self.eval = (
            ray.remote(
                num_cpus=0,
                max_concurrency=counts.get(stage, self.load.side_slots),
                allow_out_of_order_execution=True,
            )(stage).remote()
            for stage in (_Init, _Run, _Eval)
        )

    def ready(self) -> Iterator[Any]:
        return (actor.ready.remote() for actor in (self.init, self.run, self.eval))

    async def rollout(self, number: int) -> Times:
        load = self.load
        prompt = self.init.work.remote(number, load.mean_s)
        made = self.run.work.remote(prompt, number, load.mean_s, load.tokens)
        judged = self.eval.work.remote(made, load.mean_s)
        *arrays, init_ended, run_began, run_ended = await made
        reward, eval_began = await judged
        workload.check(number, Trajectory(*arrays), reward, load.tokens)
        return Times(init_ended, run_began, run_ended, eval_began)


class _Ready:
    async def ready(self) -> None:
        """Answer that the actor is there."""


class _Init(_Ready):
    async def work(self, task_id: int, mean_s: float) -> Prompt:
        await asyncio.sleep(INIT * mean_s)
        return workload.init(task_id), time.monotonic()


class _Run(_Ready):
    async def work(self, prompt: Prompt, number: int, mean_s: float, tokens: int) -> Made:
        began = time.monotonic()
        await asyncio.sleep(run_s(number, mean_s))
        made = workload.run(prompt[0], tokens)
        times = prompt[1], began, time.monotonic()
        return made.token_ids, made.logprobs, made.loss_mask, *times


class _Eval(_Ready):
    async def work(self, made: Made, mean_s: float) -> tuple[float, float]:
        began = time.monotonic()
        await asyncio.sleep(EVAL * mean_s)
        return workload.evaluate(int(made[0][0]), int(made[0][-1])), began
