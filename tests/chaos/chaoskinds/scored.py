"""Rollouts of which the task says how long they run, whom they wait for, and what they earn.

In run: sleeps `run_s`, waits for the file `gate` if its member is one of `gated` (all of them, if
that is not there), samples `tokens` tokens if there is a router, and raises if it is one of
`fails`. In eval: the reward of its member in `rewards`, which are repeated as often as needed.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from nodes.tasks import Context, Output, Sampling

from .executions import count


async def run(context: Context) -> Output:
    """Spend a turn and ten tokens, wait, and spend what a backend samples."""
    count(context)
    payload, member = context.task.payload, member_of(context)
    context.spent(turns=1, tokens=10)
    try:
        await asyncio.sleep(payload.get("run_s", 0.0))
        while not _may_pass(payload, member):  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.02)
        await _sample(context, payload.get("tokens", 0))
    except asyncio.CancelledError:
        count(context, "left")
        raise
    if member in payload.get("fails", ()):
        raise RuntimeError(f"member {member} fails")
    return Output()


async def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Pay."""
    count(context)
    rewards = context.task.payload["rewards"]
    return Output(reward=float(rewards[member_of(context) % len(rewards)]))


def member_of(context: Context) -> int:
    """Return a rollout's number within its group."""
    return int(context.rollout_id.rsplit("-", 1)[1])


def _may_pass(payload: dict[str, Any], member: int) -> bool:
    is_gated = "gate" in payload and member in payload.get("gated", [member])
    return not is_gated or Path(payload["gate"]).exists()


async def _sample(context: Context, tokens: int) -> None:
    if tokens:
        prompt = np.arange(5, 9, dtype=np.int32)
        made = await context.model.generate(context.rollout_id, prompt, Sampling(max_tokens=tokens))
        context.spent(turns=1, tokens=len(made.token_ids))
