"""Starts a sandbox in init, pins it, leaves a process in it, and uses it in run and eval.

payload: {"gate": a file that run waits for, "pinned": true, "wall_s": life of the sandbox}
"""

import asyncio
import sys
from pathlib import Path

from nodes.sandboxes.contract import Limits, Spec
from nodes.tasks import Context, Output

from .executions import count

S = 60.0


async def init(context: Context) -> Output:
    """Start a sandbox and leave something in it."""
    count(context)
    payload = context.task.payload
    sandbox = await context.sandbox(Spec(limits=Limits(wall_s=payload.get("wall_s", 600.0))))
    await sandbox.write("mark", context.rollout_id.encode())
    await sandbox.exec(["sh", "-c", "setsid sleep 4720 >/dev/null 2>&1 &"], timeout_s=S)
    if payload.get("stuck"):
        await _gate(payload)
    return Output(data={"sandbox": sandbox.name}, pinned=payload.get("pinned", True))


async def run(context: Context) -> Output:
    """Wait for the gate and look what init has left."""
    count(context)
    await _gate(context.task.payload)
    if not context.task.payload.get("pinned", True):
        return Output(data={"mark": ""})
    sandbox = await context.sandbox()
    assert sandbox.name == context.data["init"]["sandbox"]
    done = await sandbox.exec(["pgrep", "-c", "sleep"], timeout_s=S)
    return Output(
        data={"mark": (await sandbox.read("mark", 100)).decode(), "sleeps": int(done.stdout)}
    )


async def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Reward a sandbox that was the same all along, and is beside a fresh one."""
    count(context)
    data = context.data["run"]
    if context.task.payload.get("pinned", True):
        fresh = await context.sandbox(Spec())
        assert {entry.name for entry in await fresh.list("/work")} == _shown()
        assert (await context.sandbox()).name == context.data["init"]["sandbox"]
    return Output(reward=float(data["mark"] == context.rollout_id))


def _shown() -> set[str]:
    """Return what bubblewrap shows in an empty /work: the way to a Python that lies below it."""
    prefixes = [Path(each).parts for each in (sys.prefix, sys.base_prefix)]
    return {parts[2] for parts in prefixes if parts[:2] == ("/", "work")}


async def _gate(payload: dict[str, str]) -> None:
    while "gate" in payload and not Path(payload["gate"]).exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.02)
