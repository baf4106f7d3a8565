"""Each execution of a handler leaves one line, whatever happens to its process afterwards."""

import os
from pathlib import Path
from typing import Any


def count(context: Any, event: str = "") -> None:
    """Append one line for this attempt; O_APPEND keeps the lines of processes apart.

    `event` names what happened if it is not the stage's beginning.
    """
    path = context.task.payload.get("counts")
    if path is None:
        return
    line = f"{event or context.stage} {context.rollout_id} {context.attempt} {os.getpid()}\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def executions(path: str | Path) -> dict[tuple[str, str], list[int]]:
    """Return the attempts of each (stage, rollout), in the order in which they began."""
    found: dict[tuple[str, str], list[int]] = {}
    file = Path(path)
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():  # the last may be half written
        stage, rollout_id, attempt, _pid = line.split()
        found.setdefault((stage, rollout_id), []).append(int(attempt))
    return found
