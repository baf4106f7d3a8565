"""Agent sessions of the lengths that were recorded: turns, prompts, answers and time in tools.

Turns follow the quantiles of 610 recorded agent sessions (p50 29, p90 56, p99 85, at most 99).
Lengths are log-normal. All sessions share the tokens of a system prompt, those of one group also a
task; a turn adds a tool's answer to everything said before, and then the policy's.

Job: make sessions from a seed. Does not know: backends, policies or time beyond a tool's.
Invariants: the same seed makes the same sessions. Every number of tokens is at least 1.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

TURNS = ((0.0, 3), (0.1, 12), (0.5, 29), (0.9, 56), (0.99, 85), (1.0, 99))


@dataclass(frozen=True, slots=True)
class Length:
    """A log-normal number of tokens or seconds, by its median and its 99th percentile."""

    median: float
    p99: float

    def draw(self, chance: random.Random) -> float:
        """Return a value; a few reach ten times the 99th percentile, none more."""
        sigma = log(self.p99 / self.median) / 2.326
        return min(self.median * exp(sigma * chance.gauss(0.0, 1.0)), 10 * self.p99)


@dataclass(frozen=True, slots=True)
class Shape:
    """The lengths of sessions: tokens, turns of the recorded ones, seconds in a tool."""

    group_size: int = 8
    system_tokens: int = 1500
    task: Length = Length(400, 2000)
    added: Length = Length(180, 2000)
    answer: Length = Length(110, 700)
    tool_s: Length = Length(0.4, 6.0)
    turns_scale: float = 1.0
    context_tokens: int = 65_536


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn adds: tokens before it, tokens sampled in it, seconds until the next."""

    added_tokens: int
    answer_tokens: int
    tool_s: float


@dataclass(frozen=True, slots=True)
class Session:
    """A rollout's conversation with its backend."""

    number: int
    group: int
    system_tokens: int
    task_tokens: int
    turns: tuple[Turn, ...]


def sessions(shape: Shape, seed: int) -> Iterator[Session]:
    """Yield sessions without end, group after group."""
    chance = random.Random(seed)
    number = group = 0
    while True:
        group += 1
        task_tokens = _tokens(shape.task, chance)
        for _ in range(shape.group_size):
            number += 1
            turns = tuple(_turns(shape, shape.system_tokens + task_tokens, chance))
            yield Session(number, group, shape.system_tokens, task_tokens, turns)


def turns_at(share: float) -> float:
    """Return the turns that `share` of the recorded sessions do not exceed."""
    for (low, least), (high, most) in pairwise(TURNS):
        if share <= high:
            return least + (most - least) * (share - low) / (high - low)
    raise ValueError(f"a share lies between 0 and 1, got {share}")


def _turns(shape: Shape, tokens: int, chance: random.Random) -> Iterator[Turn]:
    for place in range(max(1, round(turns_at(chance.random()) * shape.turns_scale))):
        added = _tokens(shape.added, chance) if place else 0
        turn = Turn(added, _tokens(shape.answer, chance), shape.tool_s.draw(chance))
        tokens += added + turn.answer_tokens
        if tokens > shape.context_tokens:
            return
        yield turn


def _tokens(length: Length, chance: random.Random) -> int:
    return max(1, round(length.draw(chance)))
