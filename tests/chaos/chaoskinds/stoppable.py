"""Runs in one stage until it is cancelled, and notes what it knew itself when that happened.

payload: {"notes": file, "stage": where it stays, "does": one of DOES, "mark": an argument by which
its processes are told from others, "pinned": whether the sandbox is init's, "first_tokens",
"then_tokens": of the two turns of "sample", "clean_s": how long "tidy" cleans up}

Each note is one JSON line: event ("begins", "is there", "was stopped", "left"), stage, rollout_id,
attempt, the system's monotonic clock, and the turns and tokens that the handler has counted.
"""

import asyncio
import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from nodes import tokens
from nodes.sandboxes.contract import Spec
from nodes.tasks import Context, Output, Sampling
from nodes.tools.bash import Bash

from . import sleeper, unruly

FOREVER_S = 3600.0
LONG_TOKENS = 7000  # of one generation: over half a minute at a simulator's ordinary speed


async def init(context: Context) -> Output:
    """Stay, or leave a sandbox to later stages."""
    if context.task.payload.get("pinned"):
        await context.sandbox(Spec())
    await _visit(context)
    return Output(pinned=bool(context.task.payload.get("pinned")))


async def run(context: Context) -> Output:
    """Stay, or leave a few tokens."""
    await _visit(context)
    return Output(trajectory=sleeper.tokens(16))


async def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Stay, or reward."""
    await _visit(context)
    return Output(reward=1.0)


async def _visit(context: Any) -> None:
    payload = context.task.payload
    note(context, "begins")
    if payload.get("stage") == context.stage:
        try:
            await DOES[payload["does"]](context)
        except asyncio.CancelledError:
            note(context, "was stopped")
            raise
        finally:
            note(context, "left")


async def _sleep(context: Any) -> None:
    context.spent(turns=2, tokens=64)
    note(context, "is there")
    await asyncio.sleep(FOREVER_S)


async def _sample(context: Any) -> None:
    """Hold a turn of a few tokens, and then one that is too long."""
    session = f"{context.rollout_id}.{context.attempt}"
    prompt = tokens.load().opening([("user", f"Tell me of {context.rollout_id}.")])
    first = Sampling(max_tokens=context.task.payload.get("first_tokens", 8))
    try:
        generation = await context.model.generate(session, prompt, first)
        context.spent(turns=1, tokens=len(generation.token_ids))
        note(context, "is there")
        then = Sampling(max_tokens=context.task.payload.get("then_tokens", LONG_TOKENS))
        await context.model.generate(session, prompt, then)
    finally:
        await context.model.release(session)


async def _shell(context: Any) -> None:
    """Run a command with children in the background and in the foreground of a bash."""
    payload = context.task.payload
    sandbox = await context.sandbox(None if payload.get("pinned") else Spec())
    bash = Bash(sandbox)
    sleep = f"sleep {payload['mark']}"
    try:
        await bash.call(f"setsid {sleep} >/dev/null 2>&1 & {sleep} & (trap '' TERM HUP; {sleep}) &")
        context.spent(turns=1, tokens=10)
        note(context, "is there")
        await bash.call(f"{sleep} | {sleep}", timeout_s=600.0)
    finally:
        await bash.close()
        if not payload.get("pinned"):
            await sandbox.stop()


async def _exec(context: Any) -> None:
    """Run a judge's program in a sandbox, as an evaluation does."""
    sandbox = await context.sandbox(Spec())
    sleep = f"sleep {context.task.payload['mark']}"
    note(context, "is there")
    await sandbox.exec(["sh", "-c", f"{sleep} & {sleep}; true"], timeout_s=FOREVER_S)


async def _tidy(context: Any) -> None:
    """Take a while to clean up, and count what that takes."""
    note(context, "is there")
    try:
        await asyncio.sleep(FOREVER_S)
    finally:
        note(context, "cleans up")
        await asyncio.sleep(context.task.payload["clean_s"])
        context.spent(turns=3, tokens=33)


async def _finish(context: Any) -> None:
    """Take no notice of the cancel, and end as if all had gone well."""
    note(context, "is there")
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(FOREVER_S)
    context.spent(turns=4, tokens=44)


async def _swallow(context: Any) -> None:
    note(context, "is there")
    await unruly.swallow()


DOES = {
    "sleep": _sleep,
    "sample": _sample,
    "shell": _shell,
    "exec": _exec,
    "tidy": _tidy,
    "finish": _finish,
    "swallow": _swallow,
}


def note(context: Any, event: str) -> None:
    """Append a line; O_APPEND keeps the lines of processes apart."""
    line = {
        "event": event,
        "stage": context.stage,
        "rollout_id": context.rollout_id,
        "attempt": context.attempt,
        "at": time.monotonic(),
        "turns": context.turns,
        "tokens": context.tokens,
    }
    descriptor = os.open(
        context.task.payload["notes"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
    )
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def notes(path: str | Path, event: str = "", stage: str = "") -> list[dict[str, Any]]:
    """Return the notes of an event and a stage, in the order in which they were written."""
    file = Path(path)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else ()
    found = [json.loads(line) for line in lines]
    return [each for each in found if event in {"", each["event"]} and stage in {"", each["stage"]}]
