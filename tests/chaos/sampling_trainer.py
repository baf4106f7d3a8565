"""A trainer that samples under a name, writes down every batch, and may be killed and resumed.

Each of its lives gives the same prompts in the same order: prompt n is of the kind that the letter
n of `pattern` says, which is repeated: (i)nformative, (u)niform, (f)ailing in one member. A line
about a batch is on disk before the trainer works on it.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from engine import Batch, Client, Rollout, Task

LETTERS: dict[str, dict[str, Any]] = {
    "i": {"rewards": [1, 0]},
    "u": {"rewards": [1]},
    "f": {"rewards": [1, 0], "fails": [1]},
}


class Log:
    """JSON lines in a file of this life's own."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, event: str, **found: Any) -> None:
        """Append a line, which is on disk on return."""
        self._file.write(json.dumps({"event": event, **found}).encode() + b"\n")
        os.fdatasync(self._file.fileno())


def prompts(options: argparse.Namespace) -> Iterator[Task]:
    """Return the prompts, the same in every life."""
    common = json.loads(options.payload)
    for number in range(options.prompts):
        letter = options.pattern[number % len(options.pattern)]
        payload = {**common, **LETTERS[letter], "run_s": options.run_s * (1 + number % 5)}
        yield Task(f"{letter}-{number}", "chaoskinds.scored", payload)


def line_of(batch: Batch) -> dict[str, Any]:
    """Return a batch as its line."""
    return {
        "number": batch.number,
        "reason": batch.reason,
        "groups": [[member_of(rollout) for rollout in group] for group in batch.groups],
        "report": to_builtins(batch.report),
    }


def member_of(rollout: Rollout) -> dict[str, Any]:
    """Return a rollout as it is in a batch's line."""
    names = ("rollout_id", "task_id", "prompt", "seq", "outcome", "reward", "trainable")
    return {name: getattr(rollout, name) for name in names}


def live(log: Log, options: argparse.Namespace) -> None:
    """Take batches until there are enough, or until the prompts end."""
    with Client(options.topology, options.client_id, connect_s=30.0) as client:
        batches = client.sample(
            prompts(options),
            options.groups,
            options.group_size,
            over=options.over,
            ahead=options.ahead,
            sampling_id="chaos",
        )
        for batch in batches:
            log.write("batch", **line_of(batch))
            time.sleep(options.work_s)
            if batch.number + 1 == options.batches:
                break
        client.close_sampling("chaos")


def main() -> int:
    """Live once; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", required=True, type=Path)
    parser.add_argument("--log", required=True, type=Path)
    parser.add_argument("--client-id", default="trainer")
    parser.add_argument("--payload", default="{}")
    parser.add_argument("--prompts", default=1_000_000, type=int)
    parser.add_argument("--pattern", default="i")
    parser.add_argument("--run-s", default=0.05, type=float)
    parser.add_argument("--groups", required=True, type=int)
    parser.add_argument("--group-size", required=True, type=int)
    parser.add_argument("--over", default="cancel")
    parser.add_argument("--ahead", default=0, type=int)
    parser.add_argument("--batches", default=0, type=int, help="0: until the prompts end")
    parser.add_argument("--work-s", default=0.05, type=float)
    options = parser.parse_args()
    log = Log(options.log)
    log.write("start", pid=os.getpid())
    live(log, options)
    log.write("end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
