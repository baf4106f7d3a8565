"""Write the conversations that the tiny model learns from.

    python -m nodes.backends.tiny_conversations FILE [--count N] [--seed N]

Job: solve tasks of kind `calculator` without a model, token by token as a rollout would hold them.
Does not know: models; the file is read by `tiny_model`, in another environment.
Invariants: prompts come from the template and the tools of the task kind itself, so what is learned
is what will be asked. FILE is a numpy archive: token_ids int32 [n] and written uint8 [n] of all
conversations in a row, ends int64 [count], and question_at, where the system message is over.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import tokens
from ..agent import ChatmlTemplate, Message, ToolCall, ToolSpec
from ..agent.arithmetic import CALCULATOR
from ..agent.hermes import assistant_parts
from ..tasks.calculator import SYSTEM, calculator_tasks
from ..tokens import END, Ids

SPEC = ToolSpec(CALCULATOR.name, CALCULATOR.description, CALCULATOR.parameters)
SIGNS = {"Add": "+", "Subtract": "-", "Multiply by": "*"}
_START = re.compile(r"Start with (\d+)\.")
_STEP = re.compile(r"((Add|Subtract|Multiply by) (\d+)\.)")
Part = tuple[Ids, bool]


def conversation(question: str, template: ChatmlTemplate) -> list[Part]:
    """Return (token_ids int32 [n], whether the model writes them), in order."""
    start = _START.search(question)
    assert start is not None
    value = int(start[1])
    asked = [Message("system", SYSTEM), Message("user", question)]
    prompt = template.opening(asked, [SPEC])
    parts: list[Part] = [(prompt, False)]
    for words, verb, number in _STEP.findall(question):
        expression = f"{value} {SIGNS[verb]} {number}"
        call = ToolCall(SPEC.name, {"expression": expression})
        said = written(Message("assistant", "", words, (call,)))
        change = {"+": int(number), "-": -int(number)}
        value = value * int(number) if verb == "Multiply by" else value + change[SIGNS[verb]]
        answer = [Message("tool", str(value), name=SPEC.name)]
        after = template.following(prompt, said, answer, [SPEC])
        parts += [(said, True), (after, False)]
    return [*parts, (written(Message("assistant", f"<answer>{value}</answer>")), True)]


def written(message: Message) -> Ids:
    """Return what a model writes to say this, with its end token: int32 [n]."""
    text = "".join(assistant_parts(message)) + END
    return np.array(tokens.load().encode_marked(text), dtype=np.int32)


def write(file: Path, count: int, seed: int) -> int:
    """Write `count` conversations, and return how many tokens they have."""
    template = ChatmlTemplate(tokens.load())
    questions = (task["payload"]["question"] for task in calculator_tasks(count, seed, {}))
    return save(file, (conversation(question, template) for question in questions))


def save(file: Path, conversations: Iterable[Sequence[Part]]) -> int:
    """Write conversations with the calculator, and return how many tokens they have."""
    ids: list[Ids] = []
    by_model: list[npt.NDArray[np.uint8]] = []
    ends: list[int] = []
    for parts in conversations:
        ids += [part for part, _ in parts]
        by_model += [np.full(len(part), own, dtype=np.uint8) for part, own in parts]
        ends.append(len(ids))
    lengths = np.cumsum([len(part) for part in ids])
    template = ChatmlTemplate(tokens.load())
    system = template.opening([Message("system", SYSTEM)], [SPEC])
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        file,
        token_ids=np.concatenate(ids),
        written=np.concatenate(by_model),
        ends=lengths[np.array(ends) - 1],
        question_at=np.array(len(system) - len(template.opening([], []))),
    )
    return int(lengths[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file; return the exit status."""
    parser = argparse.ArgumentParser(prog="nodes.backends.tiny_conversations", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args(arguments)
    total = write(chosen.file, chosen.count, chosen.seed)
    print(f"{chosen.count} conversations, {total} tokens")  # noqa: T201 - a command's answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
