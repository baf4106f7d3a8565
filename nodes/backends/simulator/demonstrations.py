r"""Turns that were written beforehand, for tasks that no solver here understands.

    {"key": "What is 6 times 7?", "turns": [{"name": "bash", "arguments": {...}}, "\\boxed{42}"]}

Job: find the conversation in a prompt, and say its next turn.
Does not know: tasks, tools or scores. The turns come with example tasks and with `rollmq tasks
--demonstrations`; nothing is looked up in a task. The `answer` of a call is for those who learn.
Invariants: the turn depends on the prompt alone: on the user's first message, and on how many turns
there were since. A conversation that is not to be right gives up instead.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

EXAMPLES = Path(__file__).parents[2] / "data" / "examples"
GIVES_UP = "I do not know."
KEYS = ("problem", "prompt", "question", "problem_statement")
_FIRST = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)
_CHOICES = "\n\nA. "


class Demonstrations:
    """Conversations by the user's first message."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._turns = {_key(row): [_written(turn) for turn in row["turns"]] for row in rows}

    def next_turn(self, prompt: str, *, is_right: bool) -> str | None:
        """Return the assistant's next turn, or None if this conversation is not known."""
        asked = _FIRST.search(prompt)
        turns = asked and self._turns.get(asked[1].partition(_CHOICES)[0])
        if not asked or not turns:
            return None
        said = prompt.count("<|im_start|>assistant\n", asked.end()) - 1
        return turns[min(said, len(turns) - 1)] if is_right else GIVES_UP


def load_demonstrations(path: str = "") -> Demonstrations:
    """Return those that come with rollmq's examples, and those of a file of JSON lines.

    Raises: OSError, ValueError or KeyError if the file cannot be read.
    """
    rows: list[dict[str, Any]] = []
    for example in sorted(EXAMPLES.glob("*.jsonl")):
        for row in map(orjson.loads, example.read_bytes().splitlines()):
            key = next(row[name] for name in KEYS if name in row)
            rows.append({"key": key, "turns": row["demonstration"]})
    if path:
        rows += [orjson.loads(line) for line in Path(path).read_bytes().splitlines()]
    return Demonstrations(rows)


def _key(row: dict[str, Any]) -> str:
    return str(row["key"])


def _written(turn: str | dict[str, Any] | Sequence[dict[str, Any]]) -> str:
    if isinstance(turn, str):
        return turn
    calls = [turn] if isinstance(turn, dict) else turn
    said = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in said)
