"""Task kind `calculator`: sums in several steps, done with a tool, scored by the exact result.

    payload: {"question": "Start with 12. Add 30. Multiply by 3. What is the result?",
              "result": 126, "turns": 8, "max_tokens": 256, "context_tokens": 4096,
              "temperature": 1.0, "wall_s": 120.0, "template": "", "renderer": ""}

All but the first two may be left out. `template` is a model's folder (see `nodes.agent.folder`);
empty means the tokenizer that comes with rollmq. docs/agent.md shows a whole conversation.

Job: make tasks, hold the conversation, score the answer.
Does not know: the model behind the router.
Invariants: the same count and seed give the same tasks. An answer that cannot be read, or is not
there, is worth 0: that is the model's doing.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from engine.errors import BoundaryError
from engine.typed import AtLeast, Length, Mismatch, Text, compile_decoder

from .. import tokens
from ..agent import ChatmlTemplate, Limits, Message, Template, converse
from ..agent.arithmetic import CALCULATOR
from . import Context, Output, Sampling

SYSTEM = (
    "You solve problems step by step. Use the calculator for every step, one step in each turn. "
    "Then give nothing but the result between <answer> and </answer>."
)
MOST_STEPS = 4
_ANSWER = re.compile(r"<answer>\s*(-?\d+)\s*</answer>")


@dataclass(frozen=True, slots=True)
class Payload:
    """What a task of this kind carries."""

    question: Annotated[str, Length(1, 10_000), "what the user says"]
    result: Annotated[int, "the right answer"]
    turns: Annotated[int, AtLeast(1), "of the model, at most"] = 8
    max_tokens: Annotated[int, AtLeast(1), "to sample in each turn"] = 256
    context_tokens: Annotated[int, AtLeast(2), "prompt and completion together"] = 4096
    temperature: Annotated[float, AtLeast(0), "of sampling"] = 1.0
    wall_s: Annotated[float, AtLeast(0), "seconds for the conversation"] = 120.0
    template: Annotated[Text, "a model's folder; empty for rollmq's own tokenizer"] = ""
    renderer: Annotated[Text, "of the package renderers; empty for the folder's template"] = ""


_DECODE = compile_decoder(Payload)


def read_payload(payload: dict[str, Any]) -> Payload:
    """Return a task's payload.

    Raises: BoundaryError("handler") naming the field at fault; trying again does not help.
    """
    try:
        return _DECODE(payload)
    except Mismatch as wrong:
        raise BoundaryError("handler", f"payload: {wrong}", retry=False) from None


def calculator_tasks(count: int, seed: int, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield `count` tasks; `settings` go into each payload."""
    chance = random.Random(seed)  # noqa: S311 - has to be repeatable
    for index in range(count):
        yield {
            "task_id": f"calculator-{seed}-{index}",
            "kind": "calculator",
            "payload": {**_question(chance), **settings},
        }


def _question(chance: random.Random) -> dict[str, Any]:
    value = chance.randint(2, 99)
    said = [f"Start with {value}."]
    for _ in range(chance.randint(1, MOST_STEPS)):
        step = chance.choice(("Add", "Subtract", "Multiply by"))
        number = chance.randint(2, 9) if step == "Multiply by" else chance.randint(2, 99)
        said.append(f"{step} {number}.")
        value = {"Add": value + number, "Subtract": value - number}.get(step, value * number)
    return {"question": " ".join([*said, "What is the result?"]), "result": value}


async def init(context: Context) -> Output:
    """Check the payload; there is nothing to prepare."""
    read_payload(context.task.payload)
    return Output()


async def run(context: Context) -> Output:
    """Let the model work the question out with the calculator."""
    payload = read_payload(context.task.payload)
    limits = Limits(
        turns=payload.turns,
        turn_tokens=payload.max_tokens,
        tokens=payload.turns * payload.max_tokens,
        context_tokens=payload.context_tokens,
        wall_s=payload.wall_s,
    )
    messages = [Message("system", SYSTEM), Message("user", payload.question)]
    sampling = Sampling(temperature=payload.temperature)
    template = _template(payload)
    result = await converse(context, template, [CALCULATOR], limits, messages, sampling=sampling)
    return result.output()


def _template(payload: Payload) -> Template:
    if not payload.template:
        return ChatmlTemplate(tokens.load())
    from ..agent.folder import load_template  # noqa: PLC0415 - renderers takes half a second

    return load_template(payload.template, payload.renderer)


async def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Score the last answer: 1 if it is the result, else 0."""
    payload = read_payload(context.task.payload)
    answer = last_answer(context.data["run"]["text"])
    reward = float(answer == payload.result)
    return Output(data={"answer": answer}, reward=reward, rewards={"exact": reward})


def last_answer(text: str) -> int | None:
    """Return the number in the last pair of answer marks, if there is one."""
    found = _ANSWER.findall(text)
    return int(found[-1]) if found and len(found[-1]) < 40 else None
