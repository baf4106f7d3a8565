"""Leaves `mb` megabytes in run, whose bytes eval checks after `run_s` seconds of work."""

import asyncio

import numpy as np
from chaoskinds.executions import count

from nodes.tasks import Context, Output

MEGABYTE = 1 << 20


async def init(context: Context) -> Output:
    """Do nothing."""
    return Output(data={})


async def run(context: Context) -> Output:
    """Leave a lot."""
    count(context)
    payload = context.task.payload
    await asyncio.sleep(payload.get("run_s", 0.0))
    return Output(arrays={"bulk": np.full(payload["mb"] * MEGABYTE // 4, 7, dtype=np.int32)})


async def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Reward what has come whole."""
    count(context)
    bulk = context.arrays["bulk"]
    whole = len(bulk) * 4 == context.task.payload["mb"] * MEGABYTE and bool((bulk == 7).all())
    return Output(reward=float(whole))
