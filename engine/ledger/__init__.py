"""The broker's rules as a pure state machine: `handle(event, now) -> list of instructions`.

No socket, clock, thread, randomness or log; the same events at the same times give the same
instructions. The states are the table in states.py. Reading order: states, instructions, rollouts,
queues, rooms, books, batches, intake, dispatching, attempts, recovery, checks, waits, status.
"""

from collections.abc import Sequence
from heapq import heappop

from ..messages import (
    Ack,
    Cancel,
    EndSample,
    Goodbye,
    Heartbeat,
    Hello,
    Ping,
    Sample,
    StageResult,
    Submit,
    WorkerCredit,
    WorkerGoodbye,
    WorkerHello,
    WorkerLost,
)
from . import attempts, batches, intake
from .books import Books, Rules, StageRule
from .checks import validate
from .dispatching import dispatch
from .instructions import (
    Acked,
    AttemptFailed,
    Deliver,
    Dispatch,
    DropTrainer,
    DropWorker,
    Ended,
    Event,
    Forget,
    ForgetValue,
    FreeBody,
    FromTrainer,
    FromWorker,
    Instruction,
    Keep,
    KeepValue,
    NewPolicy,
    NewRules,
    PipeClosed,
    Reply,
    Rewound,
    Settle,
    StageDone,
    StopAttempts,
    Submitted,
    Tell,
    Tick,
    TrainerGone,
)
from .recovery import ENTRIES, Recovery
from .states import ACTIONS, MEANING, STATES, TRANSITIONS, State
from .status import status

__all__ = [
    "ACTIONS",
    "ENTRIES",
    "MEANING",
    "STATES",
    "TRANSITIONS",
    "Acked",
    "AttemptFailed",
    "Deliver",
    "Dispatch",
    "DropTrainer",
    "DropWorker",
    "Ended",
    "Event",
    "Forget",
    "ForgetValue",
    "FreeBody",
    "FromTrainer",
    "FromWorker",
    "Instruction",
    "Keep",
    "KeepValue",
    "Ledger",
    "NewPolicy",
    "NewRules",
    "PipeClosed",
    "Recovery",
    "Reply",
    "Rewound",
    "Rules",
    "Settle",
    "StageDone",
    "StageRule",
    "State",
    "StopAttempts",
    "Submitted",
    "Tell",
    "Tick",
    "TrainerGone",
]


class Ledger:
    """The state machine. `handle` is its only way to change."""

    def __init__(self, rules: Rules, broker_id: str) -> None:
        self._books = Books(rules, broker_id)

    @classmethod
    def recovered(cls, recovery: Recovery) -> "Ledger":
        """Take up the books that a journal's entries gave."""
        ledger = cls.__new__(cls)
        ledger._books = recovery.books  # noqa: SLF001 - its own constructor
        return ledger

    def handle(self, event: Event, now: float, *, place: bool = True) -> list[Instruction]:
        """Apply one event at time `now` (seconds, never going back); return what to do.

        Without `place` no work is dispatched yet: a broker that takes many events in one turn calls
        `place` once after them.

        Raises: LedgerError if a rule would break the table: a bug, with the rollout's history.
        """
        books = self._books
        match event:
            case FromWorker(message, body_bytes):
                _from_worker(books, message, body_bytes, now)
            case FromTrainer(client_id, message, body_bytes):
                _from_trainer(books, client_id, message, body_bytes, now)
            case PipeClosed(worker_id):
                attempts.pipe_closed(books, worker_id)
            case TrainerGone(client_id):
                intake.gone(books, client_id)
            case NewPolicy(version):
                batches.new_policy(books, version, now)
            case NewRules(rules):
                books.go_by(rules)
            case Tick(stood_still):
                if stood_still:
                    attempts.prolong(books, now)
                _tick(books, now)
        if books.samplings:
            batches.settle(books, now)
        return self.place(now) if place else self._take()

    def place(self, now: float) -> list[Instruction]:
        """Dispatch what credit allows; return what to do."""
        if self._books.dirty:
            dispatch(self._books, now)
        return self._take()

    def _take(self) -> list[Instruction]:
        out, self._books.out = self._books.out, []
        return out

    def validate(self) -> None:
        """Check every invariant. Raises: LedgerError naming the one that does not hold."""
        validate(self._books)

    def unacked(self, client_id: str) -> int:
        """Return how many of a client's rollouts it has not acknowledged."""
        client = self._books.clients.get(client_id)
        return client.unacked if client else 0

    def worker_nodes(self) -> tuple[str, ...]:
        """Return the nodes of the workers that are heard."""
        return tuple([each.node for each in self._books.workers.values() if not each.silent])

    def unpinned(self, host: str, rollout_ids: Sequence[str]) -> tuple[str, ...]:
        """Return those of some rollouts that are not pinned to a host, now or no more."""
        pinned = self._books.pinned.get(host, {})
        return tuple([name for name in rollout_ids if name not in pinned])

    def status(self, now: float, rollout_id: str = "") -> dict[str, object]:
        """Describe the books for people and tools, and one rollout if it is named; JSON-able."""
        return status(self._books, now, rollout_id)


def _from_worker(books: Books, message: object, body_bytes: int, now: float) -> None:
    match message:
        case StageResult():
            attempts.result(books, message, body_bytes, now)
        case Heartbeat():
            attempts.heartbeat(books, message, now)
        case WorkerHello():
            attempts.hello(books, message, now)
        case WorkerCredit():
            attempts.credit(books, message, now)
        case WorkerLost():
            attempts.lost(books, message, now)
        case WorkerGoodbye():
            attempts.goodbye(books, message.worker_id, now)


def _from_trainer(
    books: Books, client_id: str, message: object, body_bytes: int, now: float
) -> None:
    client = books.clients.get(client_id)
    if client is not None:
        client.heard_at = now
    match message:
        case Ping():
            pass  # to be heard is all that it does here; the broker answers it
        case Ack():
            intake.ack(books, client_id, message, now)
        case Submit():
            intake.submit(books, client_id, message, body_bytes, now)
        case Hello():
            intake.hello(books, client_id, message, now)
        case Cancel():
            intake.cancel(books, client_id, message, now)
        case Sample():
            batches.sample(books, client_id, message, now)
        case EndSample():
            batches.end_sample(books, client_id, message, now)
        case Goodbye():
            intake.gone(books, client_id)


def _tick(books: Books, now: float) -> None:
    attempts.expire(books, now)
    while books.delayed and books.delayed[0][0] <= now:
        attempts.wake_delayed(books, heappop(books.delayed)[2], now)
    attempts.rewind_lost_hosts(books, now)
    intake.forget_acked(books, now)
    intake.forget_clients(books, now)
    if books.recover_until and books.recover_until <= now:
        books.dirty.update(range(len(books.rules.stages)))
