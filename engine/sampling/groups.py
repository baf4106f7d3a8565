"""One prompt's rollouts, and what may be decided about them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from .records import Member, Sealed, Tally, Verdict


@dataclass(frozen=True, slots=True)
class Stop:
    """Cancel whatever of this group is still under way."""

    prompt: int


@dataclass(frozen=True, slots=True)
class StopStale:
    """End these rollouts as stale."""

    rollout_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judge:
    """A group has its verdict, and is in no batch: its results are not needed any more."""

    prompt: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Complete:
    """A batch is complete, or its report has changed; `final` if it will not change again."""

    batch: Sealed
    final: bool


Decision = Stop | StopStale | Judge | Complete


@dataclass(slots=True, eq=False)
class Group:
    """One prompt's rollouts."""

    prompt: int
    began: float
    accepted: int = 0  # rollouts submitted so far
    refills: int = 0  # of them, or still to come: in place of stale ones
    members: dict[str, Member] = field(default_factory=dict)  # that have ended
    replaced: set[str] = field(default_factory=set)  # stale ones that a refill stands in for
    stopped: set[str] = field(default_factory=set)  # stale ones that have not ended yet

    @property
    def present(self) -> list[Member]:
        """The members that count."""
        return [m for name, m in self.members.items() if name not in self.replaced]

    @property
    def good(self) -> list[Member]:
        """Those of the members that count which have a reward."""
        return [member for member in self.present if member.is_good]

    @property
    def live(self) -> int:
        """How many rollouts are under way."""
        return self.accepted - len(self.members)


def tally(members: Iterable[Member]) -> Tally:
    """Return what these rollouts have spent, as no group."""
    ended = list(members)
    rewards = [member.reward for member in ended if member.reward is not None]
    return Tally(
        0,
        len(ended),
        sum(member.tokens for member in ended),
        sum(member.seconds for member in ended),
        len(rewards),
        math.fsum(rewards),
    )
