"""The task kind of bench.sampling: rollouts that take as long, and pay as much, as a seed says.

Durations are log-normal, cut at a wall limit as agents' runs are: with `sigma` 1 the 95th
percentile is 5 times the median, and the slowest tenth takes 40 % of all time. Tokens are sampled
at a constant pace while a rollout runs, so what a cancelled one had sampled is known.
"""

import asyncio
import math
import random
import time

from nodes.tasks import Context, Output

TOKENS_PER_S = 1000.0
LIMIT = 12.0  # medians until the wall limit


def duration_s(seed: str, median_s: float, sigma: float) -> float:
    """Return how long a rollout runs, by its seed alone."""
    drawn = math.exp(sigma * random.Random(seed).gauss(0.0, 1.0))
    return median_s * min(drawn, LIMIT)


def is_informative(seed: str, share: float) -> bool:
    """Return whether a prompt's group has rewards that differ, by its seed alone."""
    return random.Random(f"informative {seed}").random() < share


async def init(context: Context) -> Output:
    """Do nothing."""
    del context
    return Output()


async def run(context: Context) -> Output:
    """Wait, and count tokens even if cancelled."""
    payload = context.task.payload
    member = context.rollout_id.rsplit("-", 1)[1]
    seed = f"{payload['seed']} {member}"
    began = time.monotonic()
    try:
        await asyncio.sleep(duration_s(seed, payload["median_s"], payload["sigma"]))
    finally:
        tokens = int((time.monotonic() - began) * TOKENS_PER_S)
        context.spent(turns=1, tokens=tokens)
    return Output(data={"tokens": tokens})


async def eval(context: Context) -> Output:  # noqa: A001 - named as the stage
    """Pay half of an informative group's members, and all or none of another's."""
    payload = context.task.payload
    member = int(context.rollout_id.rsplit("-", 1)[1])
    if is_informative(payload["seed"], payload["share"]):
        return Output(reward=float(member % 2))
    return Output(reward=float(random.Random(payload["seed"]).random() < 0.5))
