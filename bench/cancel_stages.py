"""The stages of `bench.cancel`: each rollout stays in the stage that its payload names.

payload: {"stay": "init", "run" or "eval", "notes": a file}. init waits, as for a sandbox; run is
the agent loop over many turns; eval asks a judge, which is the same model. Each notes when it is
there and when it is over, by the system's monotonic clock, which all processes share.
"""

import asyncio
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from nodes import tokens
from nodes.agent import ChatmlTemplate, Limits, Message, converse
from nodes.agent.arithmetic import CALCULATOR
from nodes.tasks import Context, Output, Sampling

FOREVER_S = 3000.0
CONTEXT_TOKENS = 16_384
LIMITS = Limits(
    turns=1000,
    turn_tokens=1024,
    tokens=1_000_000,
    context_tokens=CONTEXT_TOKENS,
    wall_s=FOREVER_S,
    goes_on_when_cut=True,
)
QUESTION = "Start with 12. Add 30. Multiply by 3. What is the result? Take your time, "


class Note(NamedTuple):
    """What a handler noted: an event ("there" or "over"), its stage and rollout, and when."""

    event: str
    stage: str
    rollout_id: str
    at: float


async def init(context: Context) -> Output:
    """Pass, or wait as for a sandbox."""
    if _stays(context):
        _note(context, "there")
        try:
            await asyncio.sleep(FOREVER_S)
        finally:
            _note(context, "over")
    return Output()


async def run(context: Context) -> Output:
    """Pass, or hold a conversation that no limit ends."""
    if not _stays(context):
        return Output()
    _note(context, "there")
    try:
        template = ChatmlTemplate(tokens.load())
        messages = [Message("user", QUESTION + context.rollout_id)]
        await converse(context, template, [CALCULATOR], LIMITS, messages)
    finally:
        _note(context, "over")
    return Output()


async def eval(context: Context) -> Output:  # noqa: A001 - named as the stage
    """Reward, or ask a judge that says a lot."""
    if _stays(context):
        _note(context, "there")
        session = f"{context.rollout_id}.{context.attempt}"
        prompt = tokens.load().opening([("user", QUESTION + context.rollout_id)])
        try:
            await context.model.generate(session, prompt, Sampling(max_tokens=CONTEXT_TOKENS))
        finally:
            await context.model.release(session)
            _note(context, "over")
    return Output(reward=1.0)


def _stays(context: Context) -> bool:
    return bool(context.task.payload["stay"] == context.stage)


def _note(context: Context, event: str) -> None:
    line = f"{event} {context.stage} {context.rollout_id} {time.monotonic()}\n"
    os.write(_opened(context.task.payload["notes"]), line.encode())


@lru_cache(maxsize=1)
def _opened(path: str) -> int:
    """Return a descriptor to append to, kept: opening the file costs as much as stopping."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def notes(path: Path, event: str) -> list[Note]:
    """Return the notes of an event, in the order in which they were written."""
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else ()
    found = [line.split() for line in lines]
    return [Note(*words[:3], float(words[3])) for words in found if words[0] == event]
