r"""Task kind `math`: a problem with one right answer, compared by math-verify.

    payload: {"problem": "...", "answer": "\\frac{1}{2}", "talk": {...}}

Job: prompt, conversation, score. Does not know: how answers are compared (`math_judge`).
Invariants: an answer that is wrong, absent or too hard to compare is worth 0: that is the model's
doing. A judge that fails is not. Tools are optional; those that need a sandbox get one of the
attempt's own.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated
from weakref import WeakKeyDictionary

from engine.typed import Length

from . import Context, Output
from .math_judge import Judge
from .talk import Talk, hold, opening, own_sandbox, payload_reader, toolset

SYSTEM = (
    "You solve mathematical problems step by step. Give the final answer, and nothing else, within "
    "\\boxed{}."
)
_JUDGES: WeakKeyDictionary[asyncio.AbstractEventLoop, Judge] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Payload:
    """What a task of this kind carries."""

    problem: Annotated[str, Length(1, 100_000), "what the user says"]
    answer: Annotated[str, Length(1, 10_000), "the right answer, as LaTeX or plain"]
    talk: Annotated[Talk, "how the conversation is held"] = field(default_factory=Talk)


read_payload = payload_reader(Payload)


async def init(context: Context) -> Output:
    """Write the messages that open the conversation."""
    return opening(SYSTEM, read_payload(context.task.payload).problem)


async def run(context: Context) -> Output:
    """Let the model solve the problem."""
    talk = read_payload(context.task.payload).talk
    async with own_sandbox(context, talk) as sandbox, toolset(talk, sandbox) as made:
        result = await hold(context, talk, made.tools)
        answer = result.text if made.submit is None else made.submit.answer or result.text
    return result.output(answer=answer, template=talk.template)


async def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Score the answer: 1 if it equals the right one, else 0."""
    payload = read_payload(context.task.payload)
    answer = context.data["run"]["answer"]
    judge = _JUDGES.setdefault(asyncio.get_running_loop(), Judge())
    verdict = await judge.verdict(payload.answer, _boxed(answer))
    reward = float(verdict == "equal")
    return Output(data={"verdict": verdict}, reward=reward, rewards={"exact": reward})


def _boxed(answer: str) -> str:
    """Return the answer from its last box on: what was tried before counts for nothing."""
    place = answer.rfind("\\boxed")
    return answer if place < 0 else answer[place:]
