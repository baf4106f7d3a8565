"""What goes into the ledger and what comes out.

In: events, with the time. Out: instructions, which the broker's shell carries out in order once
everything that the ledger knew when it gave them is durable (`Keep` first, answers after).
"""

from dataclasses import dataclass
from typing import Any

from ..messages import Message, Result
from ..messages.worker import EarlyOutcome
from ..records import Failure, StageTiming


@dataclass(frozen=True, slots=True)
class FromTrainer:
    """A trainer said something; `body_bytes` is the size of its body frames."""

    client_id: str
    message: Any
    body_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FromWorker:
    """A worker said something."""

    message: Any
    body_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TrainerGone:
    """A trainer's connection has ended; its results wait."""

    client_id: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: look at leases, delays and retention.

    stood_still: the broker itself did, or its disk does: work may not have left, and heartbeats may
    not have been read, so no lease ends of it.
    """

    stood_still: bool = False


@dataclass(frozen=True, slots=True)
class NewPolicy:
    """The inference backends have new weights."""

    version: int


Event = FromTrainer | FromWorker | TrainerGone | Tick | NewPolicy


@dataclass(frozen=True, slots=True)
class Keep:
    """Journal an entry under `order`; `body` says that the event's body frames belong to it."""

    order: int
    entry: Any
    body: bool = False


@dataclass(frozen=True, slots=True)
class KeepValue:
    """Journal a small value under a key, replacing the one before; None is as good as none."""

    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class FreeBody:
    """The bodies kept under `order` are no longer needed."""

    order: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove every entry under these orders."""

    orders: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a message to a trainer."""

    client_id: str
    message: Message


@dataclass(frozen=True, slots=True)
class Deliver:
    """Send a result to a trainer, with the bodies kept under `order`."""

    client_id: str
    order: int
    result: Result


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send a stage's input to a worker, with the bodies of its task and of its stages so far."""

    worker_id: str
    task_order: int
    order: int
    rollout_id: str
    group_id: str
    task_id: str
    task_kind: str
    stage: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Tell a worker that it may forget an attempt."""

    worker_id: str
    rollout_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer a worker on its control socket; never waits for the disk."""

    worker_id: str
    message: Message


@dataclass(frozen=True, slots=True)
class DropWorker:
    """A worker is gone: nothing more is sent to it."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class StopAttempts:
    """Broadcast that these attempts are no longer wanted."""

    held: tuple[tuple[str, int], ...]


Instruction = (
    Keep
    | KeepValue
    | FreeBody
    | Forget
    | Tell
    | Deliver
    | Dispatch
    | Settle
    | Reply
    | DropWorker
    | StopAttempts
)


@dataclass(frozen=True, slots=True)
class Submitted:
    """Entry: a group was accepted; its rollouts have the orders after this one."""

    client_id: str
    group_id: str
    task_id: str
    task_kind: str
    priority: int
    group_size: int
    rollout_ids: tuple[str, ...]
    body_bytes: int
    at: float
    sampling_id: str = ""
    prompt: int = 0


@dataclass(frozen=True, slots=True)
class StageDone:
    """Entry: a stage is committed; a checkpoint."""

    stage: str
    attempt: int
    worker_id: str
    host: str
    final: bool
    pinned: bool
    outcome: EarlyOutcome | None
    reward: float | None
    rewards: dict[str, float] | None
    trainable: bool | None
    turns: int
    tokens: int
    seconds: float
    timing: StageTiming
    body_bytes: int
    policy_version: int | None = None


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """Entry: an attempt failed; `counted` if it is one of the attempts that the stage allows."""

    failure: Failure
    counted: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """Entry: the rollout has ended; what the trainer will be told, without its bodies."""

    result: Result


@dataclass(frozen=True, slots=True)
class Acked:
    """Entry: the trainer has the result."""


@dataclass(frozen=True, slots=True)
class Rewound:
    """Entry: the checkpoints before this are void."""
