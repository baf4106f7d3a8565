"""What goes into the ledger and what comes out.

In: events, with the time. Out: instructions, which the broker's shell carries out in order once
everything that the ledger knew when it gave them is durable (`Keep` first, answers after).
"""

from typing import Any

from msgspec import Struct

from ..messages import Message, Result
from ..messages.worker import EarlyOutcome
from ..records import Failure, StageTiming
from ..typed import Record


class FromTrainer(Struct, frozen=True):
    """A trainer said something; `body_bytes` is the size of its body frames."""

    client_id: str
    message: Any
    body_bytes: int = 0


class FromWorker(Struct, frozen=True):
    """A worker said something."""

    message: Any
    body_bytes: int = 0


class TrainerGone(Struct, frozen=True):
    """A trainer's connection has ended; its results wait."""

    client_id: str


class PipeClosed(Struct, frozen=True):
    """A worker's pipe was closed with what waited in it; its next hello opens another one."""

    worker_id: str


class Tick(Struct, frozen=True):
    """Time has passed: look at leases, delays and retention.

    stood_still: the broker itself did, or its disk does: work may not have left, and heartbeats may
    not have been read, so no lease ends of it.
    """

    stood_still: bool = False


class NewPolicy(Struct, frozen=True):
    """The inference backends have new weights."""

    version: int


class NewRules(Struct, frozen=True):
    """The bounds and times to decide by from now on; the stages are the same ones."""

    rules: Any  # a books.Rules


Event = FromTrainer | FromWorker | TrainerGone | PipeClosed | Tick | NewPolicy | NewRules


class Keep(Struct, frozen=True):
    """Journal an entry under `order`; `body` says that the event's body frames belong to it."""

    order: int
    entry: Any
    body: bool = False


WORKERS = "workers"  # the key of the list of workers


class KeepValue(Struct, frozen=True):
    """Journal a small value under a key, replacing the one before."""

    key: str
    value: Any


class ForgetValue(Struct, frozen=True):
    """Remove the value under a key; one that is not there is none."""

    key: str


class FreeBody(Struct, frozen=True):
    """The bodies kept under `order` are no longer needed."""

    order: int


class Forget(Struct, frozen=True):
    """Remove every entry under these orders."""

    orders: tuple[int, ...]


class Tell(Struct, frozen=True):
    """Send a message to a trainer."""

    client_id: str
    message: Message


class Deliver(Struct, frozen=True):
    """Send a result to a trainer, with the bodies kept under `order`."""

    client_id: str
    order: int
    result: Result


class Dispatch(Struct, frozen=True):
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


class Settle(Struct, frozen=True):
    """Tell a worker that it may forget an attempt."""

    worker_id: str
    rollout_id: str
    attempt: int


class Reply(Struct, frozen=True):
    """Answer a worker on its control socket; never waits for the disk."""

    worker_id: str
    message: Message


class DropWorker(Struct, frozen=True):
    """A worker is gone: nothing more is sent to it."""

    worker_id: str


class DropTrainer(Struct, frozen=True):
    """A trainer is forgotten: its connection, if there still is one, has to say hello again."""

    client_id: str


class StopAttempts(Struct, frozen=True):
    """Broadcast that these attempts are no longer wanted."""

    held: tuple[tuple[str, int], ...]


Instruction = (
    Keep
    | KeepValue
    | ForgetValue
    | FreeBody
    | Forget
    | Tell
    | Deliver
    | Dispatch
    | Settle
    | Reply
    | DropWorker
    | DropTrainer
    | StopAttempts
)


class Submitted(Record, frozen=True):
    """Entry: a group was accepted; its rollouts have the orders after this one.

    next_seq: the number of its client's next result at that time.
    """

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
    next_seq: int = 1


class StageDone(Record, frozen=True):
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


class AttemptFailed(Record, frozen=True):
    """Entry: an attempt failed; `counted` if it is one of the attempts that the stage allows."""

    failure: Failure
    counted: bool


class Ended(Record, frozen=True):
    """Entry: the rollout has ended; what the trainer will be told, without its bodies."""

    result: Result


class Acked(Record, frozen=True):
    """Entry: the trainer has the result."""


class Rewound(Record, frozen=True):
    """Entry: the checkpoints before this are void.

    lost: what the rollout had pinned is gone, and not its whole host.
    """

    lost: bool = False
