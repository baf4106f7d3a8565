"""Judge a run by what its trainer saw and by nothing else.

    python tests/chaos/oracle.py LOG...

Each log holds the JSON lines of one life of one trainer process, in the order of its lives:

    start       the life begins; names the client
    submitted   ids that it is about to submit
    accepted    ids whose submit was answered
    wire        a result as it arrived, before the client's own sequence check
    received    a result as the trainer was given it
    acked       a sequence number that the trainer has done with

Imports nothing of rollmq, so that it shares none of its mistakes.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REWARDED = {"completed", "truncated", "agent_timeout"}
OUTCOMES = REWARDED | {"failed", "cancelled", "stale"}

Line = dict[str, Any]


@dataclass
class Verdict:
    """What is wrong with a run, in sentences, and how much there was of everything."""

    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        return "\n".join([*self.problems[:50], figures])


class Oracle:
    """Takes the lives of one client, then gives its verdict."""

    def __init__(self) -> None:
        self._submitted: set[str] = set()
        self._accepted: set[str] = set()
        self._ended: dict[str, tuple[Any, ...]] = {}
        self._by_seq: dict[int, str] = {}
        self._verdict = Verdict()

    def life(self, lines: Iterable[Line]) -> None:
        """Take one life of the trainer."""
        self._verdict.counts["lives"] += 1
        given: set[str] = set()
        wire: set[int] = set()
        for line in lines:
            match line["event"]:
                case "submitted":
                    self._submitted.update(line["ids"])
                case "accepted":
                    self._accepted.update(line["ids"])
                case "wire":
                    self._verdict.counts["repeats on the wire"] += line["seq"] in wire
                    wire.add(line["seq"])
                case "received":
                    self._received(line, given)
                case "acked":
                    self._verdict.counts["acks"] += 1

    def verdict(self) -> Verdict:
        """Return what is wrong, after every life."""
        for lost in sorted(self._accepted - self._ended.keys()):
            self._wrong(f"{lost} was accepted and never ended")
        self._verdict.counts["accepted"] = len(self._accepted)
        self._verdict.counts["ended"] = len(self._ended)
        return self._verdict

    def _received(self, line: Line, given: set[str]) -> None:
        name, seq, outcome = line["rollout_id"], line["seq"], line["outcome"]
        if name not in self._submitted:
            self._wrong(f"{name} was received and never submitted")
        if name in given:
            self._wrong(f"{name} was given twice to one life of the trainer")
        given.add(name)
        end = (seq, outcome, line["reward"])
        if self._ended.setdefault(name, end) != end:
            self._wrong(f"{name} ended as {self._ended[name]} and as {end}")
        if self._by_seq.setdefault(seq, name) != name:
            self._wrong(f"number {seq} is of {self._by_seq[seq]} and of {name}")
        self._reward(line)
        self._verdict.counts[outcome] += 1

    def _reward(self, line: Line) -> None:
        name, outcome, reward = line["rollout_id"], line["outcome"], line["reward"]
        if outcome not in OUTCOMES:
            self._wrong(f"{name} has the unknown outcome {outcome!r}")
        elif outcome in REWARDED and reward is None:
            self._wrong(f"{name} is {outcome} and has no reward")
        elif outcome not in REWARDED and (reward is not None or line["trainable"]):
            self._wrong(f"{name} is {outcome} and has reward {reward}, {line['trainable']=}")

    def _wrong(self, sentence: str) -> None:
        self._verdict.problems.append(sentence)


def read_log(path: Path) -> list[Line]:
    """Return a log's lines; the last may have been cut short by the end of its process.

    Raises: ValueError if any other line does not parse.
    """
    *whole, _cut = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in whole]


def judge(paths: Sequence[Path]) -> Verdict:
    """Return the verdict on the lives of one client."""
    oracle = Oracle()
    for path in paths:
        oracle.life(read_log(path))
    return oracle.verdict()


def main() -> int:
    """Judge the logs named; return the exit status."""
    verdict = judge([Path(name) for name in sys.argv[1:]])
    sys.stdout.write(f"{verdict}\n")
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    sys.exit(main())
