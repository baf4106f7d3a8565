"""Write the demonstrations that the tiny model learns by heart.

    python -m nodes.backends.tiny_demonstrations FILE

Job: the examples of kinds `math`, `code`, `stem` and `swe`, token by token as a rollout would hold
them, with their demonstrations and the answers of the tools beside these.
Does not know: models; the file is read by `tiny_model`, in another environment.
Invariants: prompts come from the template, the messages and the tools of the task kinds themselves,
so what is learned is what will be asked. FILE is what `tiny_conversations` writes, but for
question_at, int64 [count]: each conversation has a system message of its own.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np

from .. import tokens
from ..agent import ChatmlTemplate, Message, ToolCall, ToolSpec
from ..agent.tools import Toolbox
from ..sandboxes.contract import Sandbox
from ..tasks import code, math, stem, swe
from ..tasks.loading import EXAMPLES, load_tasks
from ..tasks.talk import Talk, toolset
from .tiny_conversations import Part, written

KINDS: dict[str, ModuleType] = {"math": math, "code": code, "stem": stem, "swe": swe}


def examples() -> Iterator[dict[str, Any]]:
    """Yield every example task, with its demonstration."""
    for name in KINDS:
        yield from load_tasks(name, EXAMPLES / f"{name}.jsonl", sys.maxsize, {})


def conversation(task: dict[str, Any]) -> tuple[list[Part], int]:
    """Return (token_ids int32 [n], whether the model writes them), in order; where the user begins.

    A turn that calls no tool is the last one.
    """
    kind, template = KINDS[task["kind"]], ChatmlTemplate(tokens.load())
    context: Any = SimpleNamespace(task=SimpleNamespace(payload=task["payload"]))
    opened = asyncio.run(kind.init(context)).data["messages"]
    asked = [Message(role, text) for role, text in opened]
    specs = asyncio.run(_specs(kind.read_payload(task["payload"]).talk))
    prompt = template.opening(asked, specs)
    parts: list[Part] = [(prompt, False)]
    for turn in task["demonstration"]:
        said, heard = _turn(turn)
        parts.append((written(said), True))
        if said.calls:
            answers = [Message("tool", heard)]
            parts.append((template.following(prompt, parts[-1][0], answers, specs), False))
    return parts, len(template.opening(asked[:1], specs)) - len(template.opening([], []))


def _turn(turn: str | dict[str, Any]) -> tuple[Message, str]:
    """Return what the model says, and what its tool answers."""
    if isinstance(turn, str):
        return Message("assistant", turn), ""
    call = ToolCall(turn["name"], turn["arguments"])
    return Message("assistant", "", "", (call,)), turn["answer"]


async def _specs(talk: Talk) -> tuple[ToolSpec, ...]:
    nowhere = cast(Sandbox, SimpleNamespace())  # tools enter it at their first call
    async with toolset(talk, nowhere) as made:
        return Toolbox(made.tools).specs


def write(file: Path) -> int:
    """Write the demonstrations of all examples, and return how many tokens they have."""
    made = [conversation(task) for task in examples()]
    parts = [part for found, _ in made for part in found]
    lengths = [sum(len(ids) for ids, _ in found) for found, _ in made]
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        file,
        token_ids=np.concatenate([ids for ids, _ in parts]),
        written=np.concatenate([np.full(len(ids), own, dtype=np.uint8) for ids, own in parts]),
        ends=np.cumsum(lengths),
        question_at=np.array([place for _, place in made]),
    )
    return sum(lengths)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file; return the exit status."""
    parser = argparse.ArgumentParser(prog="nodes.backends.tiny_demonstrations", description=__doc__)
    parser.add_argument("file", type=Path)
    chosen = parser.parse_args(arguments)
    print(f"{write(chosen.file)} tokens in {chosen.file}")  # noqa: T201 - a command's answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
