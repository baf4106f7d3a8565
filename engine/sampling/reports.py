"""Where a batch's work went: sums over rollouts and reports."""

import math
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from .groups import Group
from .records import BatchReport, Member, Tally, Verdict


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


def counted(report: BatchReport, verdict: Verdict, more: Tally) -> BatchReport:
    """Return a report with more of one verdict."""
    total: Tally = getattr(report, verdict).plus(more)
    return replace(report, **{verdict: total})


def residual_s(groups: Iterable[Group], durations: Sequence[float], now: float) -> float:
    """Estimate how much longer open groups would have taken: the most of their mean residual lives.

    durations: seconds from a group's beginning to the end of a good member, of groups before.
    """
    most = 0.0
    for elapsed in (now - group.began for group in groups if group.live):
        longer = [spent - elapsed for spent in durations if spent > elapsed]
        most = max(most, sum(longer) / len(longer) if longer else 0.0)
    return most
