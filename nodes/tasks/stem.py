"""Task kind `stem`: multiple choice and short answers.

    payload: {"question": "...", "choices": ["a", "b"], "answer": "B", "talk": {...}}
    payload: {"question": "...", "answer": "9.81", "also": ["g"], "tolerance": 0.01, "talk": {...}}

Job: prompt, conversation, score. Does not know: subjects.
Invariants: the answer is what stands in the last pair of answer marks, or what was submitted; no
other text counts. A number is compared with the relative `tolerance`, a text by its words.
"""

import math
import re
import string
from dataclasses import dataclass, field
from typing import Annotated

from engine.errors import BoundaryError
from engine.typed import AtLeast, Length

from . import Context, Output
from .talk import Talk, hold, opening, own_sandbox, payload_reader, toolset

SYSTEM = (
    "You answer questions of science and engineering. Reason first. Then give {what} between "
    "<answer> and </answer>."
)
LETTERS = string.ascii_uppercase
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Z])\)?(?:[.:)]|\s|$)")
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Payload:
    """What a task of this kind carries."""

    question: Annotated[str, Length(1, 100_000), "what the user says"]
    answer: Annotated[str, Length(1, 10_000), "the letter of the right choice, or a short answer"]
    choices: Annotated[tuple[str, ...], Length(0, 26), "none: a short answer"] = ()
    also: Annotated[tuple[str, ...], Length(0, 100), "other short answers that are right"] = ()
    tolerance: Annotated[float, AtLeast(0), "relative, of numbers"] = 0.01
    talk: Annotated[Talk, "how the conversation is held"] = field(default_factory=Talk)


read_payload = payload_reader(Payload)


async def init(context: Context) -> Output:
    """Write the messages that open the conversation.

    Raises: BoundaryError("handler") if the answer is not the letter of a choice.
    """
    payload = read_payload(context.task.payload)
    letters = LETTERS[: len(payload.choices)]
    if payload.choices and payload.answer not in set(letters):
        why = f"payload: answer: expected a letter of {letters}, got {payload.answer[:50]!r}"
        raise BoundaryError("handler", why, retry=False)
    listed = "".join(
        f"\n{each}. {text}" for each, text in zip(letters, payload.choices, strict=True)
    )
    what = "only the letter of the right choice" if listed else "only a short answer"
    return opening(SYSTEM.format(what=what), payload.question + (f"\n{listed}" if listed else ""))


async def run(context: Context) -> Output:
    """Let the model answer."""
    talk = read_payload(context.task.payload).talk
    async with own_sandbox(context, talk) as sandbox, toolset(talk, sandbox) as made:
        result = await hold(context, talk, made.tools)
        found = _ANSWER.findall(result.text)
        answer = found[-1].strip() if found else None
        if made.submit is not None and made.submit.answer is not None:
            answer = made.submit.answer.strip()
    return result.output(answer=answer, template=talk.template)


def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Score the answer: 1 if it is right, else 0."""
    payload = read_payload(context.task.payload)
    answer = context.data["run"]["answer"]
    reward = float(answer is not None and is_right(payload, answer))
    return Output(data={"answer": answer}, reward=reward, rewards={"exact": reward})


def is_right(payload: Payload, answer: str) -> bool:
    """Whether an answer is the right one."""
    if payload.choices:
        letter = _LETTER.match(answer)
        if letter is not None:
            return letter[1] == payload.answer
        return _words(answer) == _words(payload.choices[LETTERS.index(payload.answer)])
    return any(
        _is_same(answer, right, payload.tolerance) for right in (payload.answer, *payload.also)
    )


def _is_same(answer: str, right: str, tolerance: float) -> bool:
    if _NUMBER.fullmatch(right.strip()):
        found = _NUMBER.match(answer.strip())
        return found is not None and math.isclose(
            _number(found[0]), _number(right.strip()), rel_tol=tolerance, abs_tol=1e-12
        )
    return _words(answer) == _words(right)


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _words(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+", text.casefold())
    return [word for word in words if word not in {"a", "an", "the"}]
