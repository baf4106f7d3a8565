"""Pins itself to the host of its init; each stage tells which network it ran in, and what it found.

init leaves a file below `ground` under its network's name; run and eval look for it, as they would
for a sandbox.
"""

import asyncio
from pathlib import Path

from chaoskinds.executions import count

from nodes.tasks import Context, Output


def _here() -> str:
    return str(Path("/proc/self/ns/net").stat().st_ino)


def init(context: Context) -> Output:
    """Make a sandbox, so to speak."""
    count(context)
    place = Path(context.task.payload["ground"]) / _here()
    place.mkdir(parents=True, exist_ok=True)
    (place / context.rollout_id).touch()
    return Output(data={"network": _here(), "attempt": context.attempt}, pinned=True)


async def run(context: Context) -> Output:
    """Work where the sandbox is."""
    count(context)
    gate = Path(context.task.payload["gate"])
    while not gate.exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.05)
    return Output(data=_found(context))


def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Judge where the sandbox is."""
    count(context)
    found = _found(context)
    return Output(data=found, reward=float(found["there"] and found["network"] == _here()))


def _found(context: Context) -> dict[str, object]:
    ground = Path(context.task.payload["ground"])
    return {"network": _here(), "there": (ground / _here() / context.rollout_id).exists()}
