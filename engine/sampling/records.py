"""What a trainer asks of a sampling, and what it is told.

A *sampling* is a stream of batches; a *batch* is a number of groups that a filter kept; a *prompt*
is the number of a group within its sampling, from 0.
"""

from typing import Annotated, Literal, get_args

from msgspec import field

from ..records import Outcome
from ..typed import AtLeast, Count, Id, Record, Seconds, Text

Over = Literal["cancel", "carry"]
Staleness = Literal["none", "pace", "drop", "refill", "withhold"]
SourceEnd = Literal["", "ended", "failed", "blocked"]
Ending = Literal["", "ended", "failed", "blocked", "cancelled", "full", "filter"]
Reason = Literal["complete", "ended", "failed", "blocked", "cancelled", "full", "filter"]
Verdict = Literal["kept", "dropped", "failed", "stale", "cancelled"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
TRAINABLE = frozenset({"completed", "truncated", "agent_timeout"})


class Spec(Record, frozen=True):
    """How a sampling chooses, and what it does with the rest."""

    groups: Annotated[int, AtLeast(1), "groups in a batch"]
    group_size: Annotated[int, AtLeast(1), "rollouts in a group"]
    keep: Annotated[Id, "the filter: dapo, all, reward-bounds, or one of the topology's"] = "dapo"
    keep_args: Annotated[dict[str, float], "arguments of the filter"] = field(default_factory=dict)
    over: Annotated[Over, "what becomes of groups still open when a batch is complete"] = "cancel"
    ahead: Annotated[Count, "batches that may fill beyond the one that the trainer works on"] = 0
    members: Annotated[Count, "rollouts that must not have failed; 0 for all of the group"] = 0
    staleness: Annotated[Staleness, "what is done about rollouts from old weights"] = "none"
    bound: Annotated[Count, "policy versions that a rollout may lie behind"] = 1
    stop_early: Annotated[bool, "stop groups that the filter can no longer keep"] = False
    margin: Annotated[
        float, AtLeast(0), "groups open for each one expected to be needed; 0 for no such bound"
    ] = 0.0
    in_flight: Annotated[Count, "rollouts under way at the most; 0 for what the workers take"] = 0

    @property
    def needed(self) -> int:
        """How many members of a group must not have failed."""
        return self.members or self.group_size

    @property
    def reserved(self) -> int:
        """How many rollouts the batches that may fill come to, and one group more."""
        return ((self.ahead + 1) * self.groups + 1) * self.group_size


class Member(Record, frozen=True):
    """A rollout that has ended, as far as sampling looks at it."""

    rollout_id: str
    outcome: Outcome
    reward: float | None
    rewards: dict[str, float]
    turns: int
    tokens: int
    seconds: float
    policy_version: int | None

    @property
    def is_good(self) -> bool:
        """Whether it has a reward that a trainer may learn from."""
        return self.outcome in TRAINABLE and self.reward is not None


class Tally(Record, frozen=True):
    """How much of something there was."""

    groups: Annotated[Count, "groups"] = 0
    rollouts: Annotated[Count, "their rollouts"] = 0
    tokens: Annotated[Count, "tokens sampled"] = 0
    seconds: Annotated[Seconds, "seconds that handlers worked"] = 0.0
    rewarded: Annotated[Count, "of the rollouts, those with a reward"] = 0
    reward: Annotated[float, "the sum of their rewards"] = 0.0

    def plus(self, other: "Tally") -> "Tally":
        """Return the sum."""
        return Tally(
            self.groups + other.groups,
            self.rollouts + other.rollouts,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            self.rewarded + other.rewarded,
            self.reward + other.reward,
        )


class BatchReport(Record, frozen=True):
    """Where a batch's work went. What is carried is counted again by the batch that judges it."""

    kept: Annotated[Tally, "groups of the batch"] = Tally()
    dropped: Annotated[Tally, "groups that the filter refused"] = Tally()
    failed: Annotated[Tally, "groups with too many failed members"] = Tally()
    stale: Annotated[Tally, "groups given up because of old weights"] = Tally()
    cancelled: Annotated[Tally, "groups cancelled when the batch was complete"] = Tally()
    carried: Annotated[Tally, "groups that go on into the next batch; what has ended of them"] = (
        Tally()
    )
    stopped_early: Annotated[Count, "of dropped: groups stopped before their last member ended"] = 0
    refilled: Annotated[Count, "rollouts run again because of old weights"] = 0
    withheld: Annotated[Count, "rollouts of kept groups that are too old to learn from"] = 0
    seconds: Annotated[Seconds, "from the batch before until this one was complete"] = 0.0
    saved_s: Annotated[
        Seconds, "estimate: how much longer the longest of the cancelled would have taken"
    ] = 0.0

    @property
    def informative_share(self) -> float:
        """Kept groups over those that the filter judged; 0 if it judged none."""
        judged = self.kept.groups + self.dropped.groups
        return self.kept.groups / judged if judged else 0.0

    @property
    def mean_reward(self) -> float | None:
        """Mean over all rollouts that the filter judged, kept or not; None if none has a reward.

        Unlike the mean over the groups of a batch it says how good the policy is.
        """
        judged = self.kept.plus(self.dropped)
        return judged.reward / judged.rewarded if judged.rewarded else None

    @property
    def wasted_tokens(self) -> int:
        """Tokens of groups that no trainer learns from."""
        parts = (self.dropped, self.failed, self.stale, self.cancelled)
        return sum(part.tokens for part in parts)

    @property
    def kept_mean_s(self) -> float:
        """Mean working time of a rollout that was kept; 0 if none was."""
        return self.kept.seconds / self.kept.rollouts if self.kept.rollouts else 0.0

    @property
    def lost_mean_s(self) -> float:
        """The same, so far as they went, of those lost to staleness, failures and cancelling.

        Well above `kept_mean_s` it says that slow rollouts are lost, which biases what is learned.
        """
        lost = self.failed.plus(self.stale).plus(self.cancelled)
        return lost.seconds / lost.rollouts if lost.rollouts else 0.0


class Sealed(Record, frozen=True):
    """A batch that is complete, or as complete as it can be."""

    number: Annotated[Count, "from 0"]
    reason: Annotated[Reason, "why it is complete; `complete` if it has all its groups"]
    why: Annotated[Text, "the same for people, if it has not"]
    prompts: Annotated[tuple[Count, ...], "its groups, in the order in which they were kept"]
    left_out: Annotated[tuple[Id, ...], "stale rollouts of these groups that others stand in for"]
    withheld: Annotated[tuple[Id, ...], "rollouts of these groups that are too old to learn from"]
    report: Annotated[BatchReport, "where its work went"]
    last: Annotated[bool, "no batch follows"]
