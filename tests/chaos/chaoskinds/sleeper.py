"""Sleeps in run for `run_s` or until the file `gate` is there, leaves `tokens` tokens; in eval for
`eval_s`."""

import asyncio
from pathlib import Path

import numpy as np

from engine import Trajectory
from nodes.tasks import Context, Output

from .executions import count


async def run(context: Context) -> Output:
    """Sleep and sample."""
    count(context)
    payload = context.task.payload
    context.spent(turns=1, tokens=3)
    await asyncio.sleep(payload.get("run_s", 0.0))
    try:
        while "gate" in payload and not Path(payload["gate"]).exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        count(context, "left")
        raise
    return Output(trajectory=tokens(payload.get("tokens", 16)))


async def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Sleep and reward what has arrived whole."""
    count(context)
    payload = context.task.payload
    await asyncio.sleep(payload.get("eval_s", 0.0))
    assert context.trajectory is not None
    assert len(context.trajectory) == payload.get("tokens", 16)
    return Output(reward=1.0)


def tokens(number: int) -> Trajectory:
    """Return a trajectory of so many tokens."""
    return Trajectory(
        np.arange(number, dtype=np.int32),
        np.ones(number, dtype=np.uint8),
        np.full(number, -1.0, dtype=np.float32),
    )
