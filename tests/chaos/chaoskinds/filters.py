"""Filters of groups that a topology names."""

from collections.abc import Sequence

from engine.sampling import Member


def paid(members: Sequence[Member], least: float = 1.0) -> bool:
    """Keep a group that has earned so much in all."""
    return sum(member.reward or 0.0 for member in members) >= least


def choosy(members: Sequence[Member]) -> bool:
    """Keep any group, and fail at one with a reward below 0."""
    if any((member.reward or 0.0) < 0 for member in members):
        raise ValueError("a reward below 0")
    return True
