"""Task kinds of the benches: the stages of `bench.workload`, and stages that only wait.

A waiting stage says when it began and ended by the system's monotonic clock, which all processes of
one machine share.
"""

import asyncio
import os
import time

from bench import workload
from engine.trajectories import Trajectory
from nodes.tasks import Context, Output


async def init(context: Context) -> Output:
    """Leave the prompt, or the time."""
    payload = context.task.payload
    if "sleep_s" in payload:
        return Output(data={"ended": time.monotonic()})
    return Output(arrays={"prompt": workload.init(payload["task_id"])})


async def run(context: Context) -> Output:
    """Leave a new trajectory, or wait as long as the payload says."""
    payload = context.task.payload
    if "sleep_s" in payload:
        began = time.monotonic()
        try:
            _note(payload.get("starts"))
            await asyncio.sleep(payload["sleep_s"])
        except asyncio.CancelledError:
            _note(payload.get("stops"))
            raise
        return Output(data={"began": began, "ended": time.monotonic()})
    made = workload.run(context.arrays["prompt"], payload["tokens"])
    return Output(trajectory=Trajectory(made.token_ids, made.loss_mask, made.logprobs))


def _note(path: str | None) -> None:
    if path is None:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{time.monotonic()}\n".encode())
    os.close(descriptor)


async def eval(context: Context) -> Output:  # noqa: A001 - named as the stage
    """Leave the reward."""
    if context.trajectory is None:
        return Output(reward=0.0)
    token_ids = context.trajectory.token_ids
    return Output(reward=workload.evaluate(int(token_ids[0]), int(token_ids[-1])))
