"""Which groups are worth learning from: named filters over the rewards of a group.

A filter is `keeps(members, **arguments) -> bool`; `may_keep`, where it has one, says whether a
group of which only these members have ended can still be kept. Both are pure and quick: they run in
the broker's loop. A topology adds its own under names of its own (`sampling.filters`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from ..errors import FilterError
from .records import Member

Keeps = Callable[..., bool]
SPREAD = 1e-6  # rewards that differ by less are equal


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter with its arguments.

    keeps: of the members of a whole group that have rewards, whether it is kept.
    may_keep: of those that have ended and the number still to come, whether it may yet be kept.
    """

    name: str
    keeps: Keeps
    may_keep: Callable[..., bool] | None = None
    arguments: Mapping[str, float] = field(default_factory=dict)

    def judge(self, members: Sequence[Member]) -> bool:
        """Return whether a group is kept. Raises: FilterError, whatever the filter raised."""
        return self._ask(self.keeps, members)

    def is_hopeless(self, members: Sequence[Member], missing: int) -> bool:
        """Return whether a group can no longer be kept. Raises: FilterError."""
        if self.may_keep is None:
            return False
        return not self._ask(self.may_keep, members, missing)

    def _ask(self, question: Callable[..., bool], *about: Any) -> bool:
        try:
            return bool(question(*about, **self.arguments))
        except Exception as wrong:
            message = f"filter {self.name!r} raised {type(wrong).__name__}: {wrong}"
            raise FilterError(message) from wrong


def dapo(members: Sequence[Member]) -> bool:
    """Keep a group whose rewards differ: equal rewards have no advantage, and teach nothing."""
    rewards = [member.reward for member in members if member.reward is not None]
    return bool(rewards) and max(rewards) - min(rewards) > SPREAD


def everything(members: Sequence[Member]) -> bool:
    """Keep every group."""
    del members
    return True


def reward_bounds(
    members: Sequence[Member],
    low: float = 0.0,
    high: float = 1.0,
    least: float = 0.0,
    most: float = 1.0,
) -> bool:
    """Keep a group whose mean reward lies within `low` and `high`, both included."""
    del least, most
    rewards = [member.reward for member in members if member.reward is not None]
    return bool(rewards) and low <= sum(rewards) / len(rewards) <= high


def may_be_within(
    members: Sequence[Member],
    missing: int,
    low: float = 0.0,
    high: float = 1.0,
    least: float = 0.0,
    most: float = 1.0,
) -> bool:
    """Return whether a mean can still come to lie within bounds; rewards are `least` to `most`."""
    rewards = [member.reward for member in members if member.reward is not None]
    total, size = sum(rewards), len(rewards) + missing
    reachable = size > 0 and (total + missing * most) / size >= low
    return reachable and (total + missing * least) / size <= high


FILTERS: dict[str, Filter] = {
    "dapo": Filter("dapo", dapo),
    "all": Filter("all", everything),
    "reward-bounds": Filter("reward-bounds", reward_bounds, may_be_within),
}


def load_filters(places: Mapping[str, str]) -> dict[str, Filter]:
    """Return the built-in filters and those of a topology, `name: "package.module:function"`.

    Raises: FilterError naming the filter that cannot be loaded.
    """
    found = dict(FILTERS)
    for name, place in places.items():
        module, _, attribute = place.partition(":")
        try:
            keeps = getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as wrong:
            raise FilterError(f"filter {name!r}: cannot load {place!r}: {wrong}") from wrong
        if not callable(keeps):
            raise FilterError(f"filter {name!r}: {place!r} is not a function")
        found[name] = Filter(name, keeps)
    return found
