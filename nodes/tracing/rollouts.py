"""The broker's spans, from the instructions that its ledger gives: root, submit, queues, stages.

Job: follow each traced rollout from its acceptance to its end; give all its spans then.
Does not know: the ledger's rules, clocks, or OpenTelemetry. Time is an argument, in nanoseconds.
Invariants: what is kept of a rollout goes with its end; at most `MOST` are followed, and of others
the root alone is given. A rollout accepted before this process started has a root, and the spans
since.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from engine.ledger import (
    AttemptFailed,
    Dispatch,
    Ended,
    Instruction,
    Keep,
    Rewound,
    StageDone,
    Submitted,
)
from engine.messages import Result

from .spans import Attribute, Span, is_traced, part_id, root_id, stage_id

MOST = 100_000
SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt under way."""

    stage: str
    number: int
    worker: str
    began_ns: int


@dataclass(slots=True, eq=False)
class Followed:
    """What is known of a rollout that has not ended."""

    rollout_id: str
    accepted_ns: int
    ready_ns: int
    about: dict[str, Attribute]
    attempt: Attempt | None = None
    spans: list[Span] = field(default_factory=list)


class RolloutSpans:
    """Follows rollouts; `emit` is called with all spans of one that ends."""

    def __init__(
        self, stages: Sequence[str], share: float, emit: Callable[[list[Span]], None]
    ) -> None:
        self._stages = stages
        self._share = share
        self._emit = emit
        self._followed: dict[int, Followed] = {}
        self._accepting: deque[tuple[int, list[Followed]]] = deque()

    def take(self, instructions: Iterable[Instruction], now_ns: int) -> None:
        """Note what instructions say of rollouts."""
        for instruction in instructions:
            if isinstance(instruction, Dispatch):
                self._dispatched(instruction, now_ns)
            elif isinstance(instruction, Keep):
                self._kept(instruction, now_ns)

    def accepted(self, position: int) -> None:
        """Note that submissions kept since the last call become durable at a journal position."""
        for place, (known, followed) in enumerate(self._accepting):
            if not known:
                self._accepting[place] = (position, followed)

    def durable(self, position: int, now_ns: int) -> None:
        """End the submit spans of what is durable."""
        while self._accepting and 0 < self._accepting[0][0] <= position:
            for each in self._accepting.popleft()[1]:
                each.spans.append(
                    _span(each, "submit", root_id(each.rollout_id), each.accepted_ns, now_ns)
                )

    def _kept(self, keep: Keep, now_ns: int) -> None:
        entry = keep.entry
        if isinstance(entry, Submitted):
            self._submitted(keep.order, entry, now_ns)
        elif isinstance(entry, Ended):
            self._ended(self._followed.pop(keep.order, None), entry.result, now_ns)
        elif (followed := self._followed.get(keep.order)) is not None:
            match entry:
                case StageDone(attempt=attempt):
                    self._close(followed, now_ns, "done", attempt)
                case AttemptFailed(failure, counted):
                    why = f"{failure.boundary}: {failure.error}: {failure.message}"
                    status = "failed" if counted else "interrupted"
                    self._close(followed, now_ns, status, failure.attempt, why[:2000])
                case Rewound():
                    self._close(followed, now_ns, "rewound")
            followed.ready_ns = now_ns

    def _submitted(self, order: int, entry: Submitted, now_ns: int) -> None:
        about: dict[str, Attribute] = {
            "rollmq.client_id": entry.client_id,
            "rollmq.group_id": entry.group_id,
            "rollmq.task_id": entry.task_id,
            "rollmq.task_kind": entry.task_kind,
        }
        begun = []
        for place, name in enumerate(entry.rollout_ids, order + 1):
            if len(self._followed) < MOST and is_traced(name, self._share):
                self._followed[place] = Followed(name, now_ns, now_ns, about)
                begun.append(self._followed[place])
        if begun:
            self._accepting.append((0, begun))

    def _dispatched(self, work: Dispatch, now_ns: int) -> None:
        followed = self._followed.get(work.order)
        if followed is None:
            return
        self._close(followed, now_ns, "released")
        stage, number = self._stages[work.stage], work.attempt
        parent = root_id(followed.rollout_id)
        waited = _span(followed, "queue", parent, followed.ready_ns, now_ns, stage, number)
        followed.spans.append(waited)
        followed.attempt = Attempt(stage, number, work.worker_id, now_ns)

    def _close(
        self,
        followed: Followed,
        now_ns: int,
        status: str,
        number: int | None = None,
        error: str = "",
    ) -> None:
        attempt = followed.attempt
        if attempt is None:
            return
        followed.attempt = None
        if number is not None and number != attempt.number:
            status, error = "superseded", ""
        attributes: dict[str, Attribute] = {
            "rollmq.stage": attempt.stage,
            "rollmq.attempt": attempt.number,
            "rollmq.worker_id": attempt.worker,
            "rollmq.status": status,
        }
        name = followed.rollout_id
        span_id = stage_id(name, attempt.stage, attempt.number)
        title = f"stage {attempt.stage}"
        times = (attempt.began_ns, now_ns)
        followed.spans.append(Span(name, title, span_id, root_id(name), *times, attributes, error))

    def _ended(self, followed: Followed | None, result: Result, now_ns: int) -> None:
        if not is_traced(result.rollout_id, self._share):
            return
        if followed is None:
            accepted_ns = now_ns - int(result.total_s * SECOND)
            followed = Followed(result.rollout_id, accepted_ns, now_ns, {})
        self._close(followed, now_ns, result.outcome)
        attributes = {**followed.about, **_about(result)}
        why = result.failures[-1].message if result.failures else result.outcome
        error = why[:2000] if result.outcome == "failed" else ""
        name = followed.rollout_id
        times = (followed.accepted_ns, now_ns)
        root = Span(name, "rollout", root_id(name), 0, *times, attributes, error)
        self._emit([root, *followed.spans])


def _about(result: Result) -> dict[str, Attribute]:
    about: dict[str, Attribute] = {
        "rollmq.rollout_id": result.rollout_id,
        "rollmq.outcome": result.outcome,
        "rollmq.trainable": result.trainable,
        "rollmq.failed_attempts": len(result.failures),
    }
    if result.reward is not None:
        about["rollmq.reward"] = result.reward
    if result.policy_version is not None:
        about["rollmq.policy_version"] = result.policy_version
    return about


def _span(
    followed: Followed,
    kind: str,
    parent: int,
    began_ns: int,
    ended_ns: int,
    stage: str = "",
    attempt: int = 0,
) -> Span:
    name = f"{kind} {stage}" if stage else kind
    where: dict[str, Attribute] = {}
    if stage:
        where = {"rollmq.stage": stage, "rollmq.attempt": attempt}
    span_id = part_id(followed.rollout_id, kind, stage, attempt)
    return Span(followed.rollout_id, name, span_id, parent, began_ns, ended_ns, where)
