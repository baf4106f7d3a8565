"""Judge a sampling by the batches that its trainer was given, in all of its lives.

A log holds the JSON lines of one life, in order: `batch` with its number, reason, groups and
report. A prompt's letter, which its task's name begins with, says what its group is: (i)nformative,
(u)niform, (f)ailing. Imports nothing of rollmq, so that it shares none of its mistakes.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Line = dict[str, Any]


@dataclass
class Asked:
    """What the trainer asked for. prompts: how many there are, if they end; else 0."""

    groups: int
    group_size: int
    ahead: int = 0
    prompts: int = 0
    pattern: str = "i"

    def letters(self) -> Counter[str]:
        """Return how many prompts there are of each kind."""
        return Counter(self.pattern[n % len(self.pattern)] for n in range(self.prompts))


@dataclass
class Verdict:
    """What is wrong, in sentences; every batch by its number; how often one came again."""

    problems: list[str] = field(default_factory=list)
    batches: dict[int, Line] = field(default_factory=dict)
    again: int = 0

    def __str__(self) -> str:
        return "\n".join([*self.problems[:50], f"{len(self.batches)} batches, {self.again} again"])


def judge(lives: Iterable[Iterable[Line]], asked: Asked, *, whole: bool = False) -> Verdict:
    """Return the verdict; with `whole`, no group was cancelled: every prompt has to be found."""
    verdict = Verdict()
    for life in lives:
        _live([line for line in life if line["event"] == "batch"], asked, verdict)
    for line in verdict.batches.values():
        _batch(line, asked, verdict)
    _once(verdict)
    if whole:
        _whole(asked, verdict)
    return verdict


def _live(lines: list[Line], asked: Asked, verdict: Verdict) -> None:
    """Numbers go on: the first may be one that an earlier life did not get to acknowledge."""
    expected: int | None = None
    for line in lines:
        number = line["number"]
        after = len(verdict.batches)
        if expected is None and not max(0, after - 2 - asked.ahead) <= number <= after:
            verdict.problems.append(f"a life begins with batch {number} after {after} batches")
        if expected is not None and number != expected:
            verdict.problems.append(f"batch {number} came where {expected} was due")
        expected = number + 1
        known = verdict.batches.setdefault(number, line)
        verdict.again += known is not line
        if known["groups"] != line["groups"] or known["reason"] != line["reason"]:
            verdict.problems.append(f"batch {number} was another one the second time")
    if sorted(verdict.batches) != list(range(len(verdict.batches))):
        verdict.problems.append(f"batches are missing: {sorted(verdict.batches)}")


def _batch(line: Line, asked: Asked, verdict: Verdict) -> None:
    number, groups = line["number"], line["groups"]
    if line["reason"] not in {"complete", "ended"}:
        verdict.problems.append(f"batch {number} has reason {line['reason']}")
    if line["reason"] == "complete" and len(groups) != asked.groups:
        verdict.problems.append(f"batch {number} has {len(groups)} groups")
    if line["report"]["kept"]["groups"] != len(groups):
        verdict.problems.append(f"batch {number} reports {line['report']['kept']} kept")
    for group in groups:
        rewards = {member["reward"] for member in group}
        outcomes = {(member["outcome"], member["trainable"]) for member in group}
        if len(group) != asked.group_size or len({m["task_id"] for m in group}) != 1:
            verdict.problems.append(f"batch {number} has a broken group: {group}")
        if rewards != {0.0, 1.0} or outcomes != {("completed", True)}:
            verdict.problems.append(f"batch {number} has {rewards} {outcomes}: {group}")
        if not group[0]["task_id"].startswith("i-"):
            verdict.problems.append(f"batch {number} has {group[0]['task_id']}")


def _once(verdict: Verdict) -> None:
    """No rollout, result or prompt is in two batches, or twice in one."""
    members = [m for line in verdict.batches.values() for group in line["groups"] for m in group]
    tasks = [g[0]["task_id"] for line in verdict.batches.values() for g in line["groups"]]
    for what in ("rollout_id", "seq"):
        counts = Counter(member[what] for member in members)
        repeated = [name for name, times in counts.items() if times > 1]
        if repeated:
            verdict.problems.append(f"{what} in more than one place: {repeated[:5]}")
    twice = [task for task, times in Counter(tasks).items() if times > 1]
    if twice:
        verdict.problems.append(f"groups in more than one batch: {twice[:5]}")


def _whole(asked: Asked, verdict: Verdict) -> None:
    """Every informative prompt is in a batch, and the reports account for all the others."""
    letters = asked.letters()
    found = sum(len(line["groups"]) for line in verdict.batches.values())
    if found != letters["i"]:
        verdict.problems.append(f"{found} groups were kept of {letters['i']} informative ones")
    reports = [line["report"] for line in verdict.batches.values()]
    for part, letter in (("dropped", "u"), ("failed", "f")):
        told = sum(report[part]["groups"] for report in reports)
        if told != letters[letter]:
            verdict.problems.append(f"{told} groups {part}, not {letters[letter]}")
    for part in ("stale", "cancelled"):
        told = sum(report[part]["groups"] for report in reports)
        if told:
            verdict.problems.append(f"{told} groups {part}, where none should be")
