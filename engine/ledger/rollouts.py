"""The ledger's mutable books on one rollout, one submission, one client and one worker.

Only the ledger's own modules write here. A rollout changes its state through `step` alone, which
consults the table in states.py.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from ..errors import LedgerError
from ..messages import Message, Result
from ..messages.worker import EarlyOutcome
from ..records import Failure, Outcome, Receipt, StageTiming, Usage
from ..sampling import Sampler
from .states import TRANSITIONS, Action, State

NOTHING_SPENT = Usage()
HISTORY = 32  # transitions kept for an error's report


@dataclass(slots=True, eq=False)
class LedgerSampling:
    """A client's sampling: its rules, and the submissions of each of its prompts."""

    client_id: str
    sampling_id: str
    sampler: Sampler
    submissions: dict[int, list["Submission"]] = field(default_factory=dict)
    outbox: list[Message] = field(default_factory=list)  # told once the state is kept
    told: tuple[int, tuple[tuple[int, int], ...]] = (-1, ())
    kept: int = -1  # the sampler's `changes` when its state was kept
    held: int = 0  # its rollouts that are not acknowledged
    changed: bool = True  # whether there may be something to keep or to tell

    @property
    def key(self) -> str:
        """The key that its state is journalled under."""
        return f"sampling {self.client_id} {self.sampling_id}"

    def is_of(self, client: "LedgerClient") -> bool:
        """Whether a client opened it."""
        return self.client_id == client.client_id

    @property
    def reserved(self) -> int:
        """Room that it can rely on: for the batches that may fill, and one group more."""
        return self.sampler.spec.reserved

    @property
    def kept_free(self) -> int:
        """What is reserved and not held yet: room that nobody else is given."""
        return max(0, self.reserved - self.held)


@dataclass(slots=True, eq=False)
class Submission:
    """The rollouts that one submit brought: one task, one group or a part of it."""

    order: int
    client_id: str
    group_id: str
    task_id: str
    task_kind: str
    priority: int
    group_size: int
    body_bytes: int
    sampling_id: str = ""  # of the sampling that it was submitted for, open or closed
    sampling: LedgerSampling | None = None
    prompt: int = 0
    closed: bool = False  # of a sampling that was closed: nobody waits for its results
    members: list["LedgerRollout"] = field(default_factory=list)
    unacked: int = 0
    kept: int = 0


@dataclass(slots=True, eq=False)
class LedgerRollout:
    """One rollout. `stage` is the stage that it waits for or is in."""

    order: int
    rollout_id: str
    submission: Submission
    accepted_at: float
    since: float
    state: State = "ready"
    stage: int = 0
    attempt: int = 0
    base: int = 0  # attempts up to this one belong to stages already committed
    seen: int = 0  # the highest attempt ever heard of
    failed: int = 0  # attempts of this stage that count against its limit
    deaths: int = 0  # workers that went for no known reason while at it
    losses: int = 0  # times that what it had pinned, or its work on the way, was gone
    worker_id: str = ""
    confirmed: bool = False  # whether its worker has said that it holds this attempt
    avoid: str = ""
    deadline: float = 0.0
    dispatched_at: float = 0.0
    queue_s: float = 0.0
    host: str = ""
    size_bytes: int = 0
    outcome: EarlyOutcome | None = None
    ended_as: Outcome | None = None
    stopped_as: Literal["cancelled", "stale"] = "cancelled"
    policy_version: int | None = None  # of the first token sampled, by a committed stage
    leased_version: int = 0  # the weights in use when its lease began
    reward: float | None = None
    rewards: dict[str, float] | None = None
    trainable: bool | None = None
    usage: Usage = NOTHING_SPENT
    failures: tuple[Failure, ...] = ()
    timings: tuple[StageTiming, ...] = ()
    cancels: tuple[tuple[str, str], ...] = ()  # who asked, and the cancel's id
    result: Result | None = None
    ticket: int = 0  # its place in a queue; 0 in none
    history: list[tuple[float, str]] = field(default_factory=list)

    def step(self, action: Action, now: float, detail: str = "") -> None:
        """Change the state as the table says.

        Raises: LedgerError with the rollout's history if the table has no such transition.
        """
        after = TRANSITIONS.get((self.state, action))
        if after is None:
            message = f"rollout {self.rollout_id} is {self.state}: cannot {action} ({detail})"
            raise LedgerError(message, [f"{at:.3f} {what}" for at, what in self.history])
        if len(self.history) >= HISTORY:
            del self.history[: HISTORY // 2]
        self.history.append((now, f"{action} {detail}"))
        self.state = after
        self.since = now


@dataclass(slots=True, eq=False)
class LedgerClient:
    """One trainer, across its connections; `first_seq` is where its numbers began."""

    client_id: str
    first_seq: int = 1
    next_seq: int = 1
    heard_at: float = 0.0
    window: int = 0
    connected: bool = False
    unacked: int = 0
    acked: int = 0  # since the broker's start
    waits_for_credit: bool = False
    submissions: dict[str, list[Submission]] = field(default_factory=dict)
    ended: dict[int, LedgerRollout] = field(default_factory=dict)
    delivered: set[int] = field(default_factory=set)  # and neither held nor acknowledged
    delivered_bytes: int = 0
    held: set[int] = field(default_factory=set)
    pending: deque[int] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class LedgerWorker:
    """One process that runs handlers, from its hello until it is lost."""

    worker_id: str
    node: str
    host: str
    stage: int
    slots: int
    bytes: int
    heard_at: float
    lag_s: float = 0.0
    loop_s: float = 0.0  # what its loop's last answer took
    culprit: str = ""  # the rollout whose code runs while its loop stands still
    used_bytes: int = 0
    used_at: float = 0.0
    silent: bool = False
    cut: bool = False  # its pipe is closed: nothing reaches it before its next hello
    alone: bool = False  # runs one suspect rollout and nothing else
    reserved: bool = False  # being emptied for one
    leases: dict[str, LedgerRollout] = field(default_factory=dict)

    def has_room(self, size_bytes: int) -> bool:
        """Whether the credit that is left holds one more rollout of this size."""
        if self.silent or self.cut or self.lag_s or self.alone or self.reserved:
            return False
        if len(self.leases) >= self.slots:
            return False
        return not self.leases or self.used_bytes + size_bytes <= self.bytes


@dataclass(slots=True, eq=False)
class PendingCancel:
    """A cancel that waits for workers to stop."""

    cancel_id: str
    client_id: str
    waiting: set[str] = field(default_factory=set)
    receipts: list[Receipt] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
