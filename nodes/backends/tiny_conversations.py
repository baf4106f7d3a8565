"""Write the conversations that the tiny model learns from.

    python -m nodes.backends.tiny_conversations FILE [--count N] [--seed N]

Job: conversations token by token as a rollout would hold them: tasks of kind `calculator`, solved
without a model, and the demonstrations of the example tasks, with the answers of their tools.
Does not know: models; the file is read by `tiny_model`, in another environment.
Invariants: prompts come from the template, the messages and the tools of the task kinds themselves,
so what is learned is what will be asked. FILE is a numpy archive: token_ids int32 [n] and written
uint8 [n] of all conversations in a row; for each of them ends int64 [count], question_at int64
[count], where its system message is over, and shown uint8 [count], whether it is a demonstration.
"""

import argparse
import asyncio
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np

from .. import tokens
from ..agent import ChatmlTemplate, Message, ToolCall, ToolSpec
from ..agent.arithmetic import CALCULATOR
from ..agent.hermes import assistant_parts
from ..agent.tools import Toolbox
from ..sandboxes.contract import Sandbox
from ..tasks import code, math, stem, swe
from ..tasks.calculator import SYSTEM, calculator_tasks
from ..tasks.loading import EXAMPLES, load_tasks
from ..tasks.talk import Talk, toolset
from ..tokens import END, Ids

SPEC = ToolSpec(CALCULATOR.name, CALCULATOR.description, CALCULATOR.parameters)
SIGNS = {"Add": "+", "Subtract": "-", "Multiply by": "*"}
SHOWN: dict[str, ModuleType] = {"math": math, "code": code, "stem": stem, "swe": swe}
_START = re.compile(r"Start with (\d+)\.")
_STEP = re.compile(r"((Add|Subtract|Multiply by) (\d+)\.)")
Turn = tuple[Message, str]


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """(token_ids int32 [n], whether the model writes them) in order; and where the user begins."""

    parts: list[tuple[Ids, bool]]
    question_at: int
    is_shown: bool = False


def conversation(
    asked: Sequence[Message], specs: Sequence[ToolSpec], turns: Iterable[Turn], *, is_shown: bool
) -> Conversation:
    """Return a conversation: what is asked, then turns with what the tool answers to each.

    A turn that calls no tool is the last one.
    """
    template = ChatmlTemplate(tokens.load())
    prompt = template.opening(asked, specs)
    parts = [(prompt, False)]
    for said, heard in turns:
        parts.append((_written(said), True))
        if said.calls:
            answers = [Message("tool", heard)]
            parts.append((template.following(prompt, parts[-1][0], answers, specs), False))
    before = len(template.opening(asked[:1], specs)) - len(template.opening([], []))
    return Conversation(parts, before, is_shown)


def sum_conversation(question: str) -> Conversation:
    """Return the conversation of a task of kind `calculator`."""
    start = _START.search(question)
    assert start is not None
    value = int(start[1])
    turns: list[Turn] = []
    for words, verb, number in _STEP.findall(question):
        call = ToolCall(SPEC.name, {"expression": f"{value} {SIGNS[verb]} {number}"})
        change = {"+": int(number), "-": -int(number)}
        value = value * int(number) if verb == "Multiply by" else value + change[SIGNS[verb]]
        turns.append((Message("assistant", "", words, (call,)), str(value)))
    turns.append((Message("assistant", f"<answer>{value}</answer>"), ""))
    asked = [Message("system", SYSTEM), Message("user", question)]
    return conversation(asked, [SPEC], turns, is_shown=False)


def shown_conversation(kind: ModuleType, task: dict[str, Any]) -> Conversation:
    """Return the demonstration of an example task, as its kind opens it and offers its tools."""
    payload, turns = task["payload"], task["demonstration"]
    context: Any = SimpleNamespace(task=SimpleNamespace(payload=payload))
    opened = asyncio.run(kind.init(context)).data["messages"]
    asked = [Message(role, text) for role, text in opened]
    specs = asyncio.run(_specs(kind.read_payload(payload).talk))
    return conversation(asked, specs, [_turn(turn) for turn in turns], is_shown=True)


def _turn(turn: str | dict[str, Any]) -> Turn:
    if isinstance(turn, str):
        return Message("assistant", turn), ""
    call = ToolCall(turn["name"], turn["arguments"])
    return Message("assistant", "", "", (call,)), turn["answer"]


async def _specs(talk: Talk) -> tuple[ToolSpec, ...]:
    nowhere = cast(Sandbox, SimpleNamespace())  # tools enter it at their first call
    async with toolset(talk, nowhere) as made:
        return Toolbox(made.tools).specs


def _written(message: Message) -> Ids:
    text = "".join(assistant_parts(message)) + END
    return np.array(tokens.load().encode_marked(text), dtype=np.int32)


def conversations(count: int, seed: int) -> Iterator[Conversation]:
    """Yield `count` conversations of kind `calculator`, and every example's."""
    for task in calculator_tasks(count, seed, {}):
        yield sum_conversation(task["payload"]["question"])
    for name, kind in SHOWN.items():
        for task in load_tasks(name, EXAMPLES / f"{name}.jsonl", sys.maxsize, {}):
            yield shown_conversation(kind, task)


def write(file: Path, count: int, seed: int) -> int:
    """Write the file, and return how many tokens it has."""
    made = list(conversations(count, seed))
    parts = [part for each in made for part in each.parts]
    lengths = [sum(len(ids) for ids, _ in each.parts) for each in made]
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        file,
        token_ids=np.concatenate([ids for ids, _ in parts]),
        written=np.concatenate([np.full(len(ids), by_model, np.uint8) for ids, by_model in parts]),
        ends=np.cumsum(lengths),
        question_at=np.array([each.question_at for each in made]),
        shown=np.array([each.is_shown for each in made], dtype=np.uint8),
    )
    return sum(lengths)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file; return the exit status."""
    parser = argparse.ArgumentParser(prog="nodes.backends.tiny_conversations", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=3000, help="of kind calculator")
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args(arguments)
    total = write(chosen.file, chosen.count, chosen.seed)
    print(f"{total} tokens of conversations in {chosen.file}")  # noqa: T201 - a command's answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
