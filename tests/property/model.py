"""What stands outside the ledger in the state machine: processes, and what trainers saw."""

from dataclasses import dataclass, field

from engine.messages import Held, Result, StageResult


@dataclass(slots=True, eq=False)
class Process:
    """A worker's process; `held` has the result of what is over, None for what runs."""

    worker_id: str
    node: str
    stage: str
    host: str
    slots: int
    welcomed: bool = False
    held: dict[Held, StageResult | None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Model:
    """What one trainer has seen."""

    welcomed: bool = False
    accepted: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    by_seq: dict[int, Result] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    unacked: set[int] = field(default_factory=set)

    def take(self, result: Result) -> None:
        """Check one delivery against all before it."""
        self.unacked.add(result.seq)
        if result.seq in self.by_seq:
            assert self.by_seq[result.seq] == result, "a repeat is what it was"
            return
        assert result.seq == len(self.by_seq) + 1, "results come in order"
        assert result.rollout_id not in self.ended, "a rollout ends once"
        if result.rollout_id in self.cancelled:
            assert result.outcome == "cancelled", "nothing completes after its cancel is answered"
        if result.outcome in {"failed", "cancelled"}:
            assert result.reward is None
            assert not result.trainable
        self.by_seq[result.seq] = result
        self.ended.add(result.rollout_id)
