"""One prompt's rollouts, and what may be decided about them."""

from dataclasses import dataclass, field

from .records import Member, Sealed, Spec, Verdict


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

    def stale(self, spec: Spec, version: int) -> list[Member]:
        """Return those of the good members that are too old under new weights."""
        if spec.staleness not in {"drop", "refill", "withhold"}:
            return []
        least = version - spec.bound
        return [m for m in self.good if m.policy_version is not None and m.policy_version < least]

    def is_too_old(self, spec: Spec, version: int) -> bool:
        """Whether a group that was kept can no longer be used as it is."""
        stale = self.stale(spec, version)
        return len(stale) == len(self.good) if spec.staleness == "withhold" else bool(stale)

    @property
    def live(self) -> int:
        """How many rollouts are under way."""
        return self.accepted - len(self.members)
