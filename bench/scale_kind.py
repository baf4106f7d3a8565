"""The task kind of bench.scale: stages that wait as long as a rollout's number says.

Each says when it began or ended by the system's monotonic clock, which all processes of one machine
share. A run leaves a trajectory, as bench.workload makes it.
"""

import asyncio
import time

from bench import workload
from bench.scale_shape import EVAL, INIT, run_s
from engine.trajectories import Trajectory
from nodes.tasks import Context, Output


async def init(context: Context) -> Output:
    """Wait, and leave the prompt."""
    payload = context.task.payload
    await asyncio.sleep(INIT * payload["mean_s"])
    prompt = workload.init(payload["task_id"])
    return Output(arrays={"prompt": prompt}, data={"ended": time.monotonic()})


async def run(context: Context) -> Output:
    """Wait, and leave a new trajectory."""
    began = time.monotonic()
    payload = context.task.payload
    member = int(context.rollout_id.rsplit("-", 1)[1])
    await asyncio.sleep(run_s(payload["first"] + member, payload["mean_s"]))
    made = workload.run(context.arrays["prompt"], payload["tokens"])
    trajectory = Trajectory(made.token_ids, made.loss_mask, made.logprobs)
    return Output(trajectory=trajectory, data={"began": began, "ended": time.monotonic()})


async def eval(context: Context) -> Output:  # noqa: A001 - named as the stage
    """Wait, and leave the reward."""
    began = time.monotonic()
    await asyncio.sleep(EVAL * context.task.payload["mean_s"])
    assert context.trajectory is not None
    ids = context.trajectory.token_ids
    reward = workload.evaluate(int(ids[0]), int(ids[-1]))
    return Output(reward=reward, data={"began": began})
