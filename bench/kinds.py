"""Task kinds of the benches: the stages of `bench.workload`, and stages that only wait.

A waiting stage says when it began and ended by the system's monotonic clock, which all processes of
one machine share.
"""

import asyncio
import time

from bench import workload
from engine.records import Trajectory
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
        await asyncio.sleep(payload["sleep_s"])
        return Output(data={"began": began, "ended": time.monotonic()})
    made = workload.run(context.arrays["prompt"], payload["tokens"])
    return Output(trajectory=Trajectory(made.token_ids, made.loss_mask, made.logprobs))


async def eval(context: Context) -> Output:  # noqa: A001 - named as the stage
    """Leave the reward."""
    if context.trajectory is None:
        return Output(reward=0.0)
    token_ids = context.trajectory.token_ids
    return Output(reward=workload.evaluate(int(token_ids[0]), int(token_ids[-1])))
