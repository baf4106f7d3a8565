"""What must hold between an event and what a ledger answers, beyond the books' own invariants."""

from typing import Any

from engine.errors import LedgerError
from engine.ledger import (
    Deliver,
    Dispatch,
    Event,
    FromWorker,
    Instruction,
    Keep,
    Ledger,
    Rewound,
    Rules,
    Settle,
    StageDone,
)
from engine.ledger.books import ISOLATE_AFTER
from engine.messages import Heartbeat, StageResult

Lease = tuple[str, int, float]


class Promises:
    """Watches one ledger, for one life of its broker."""

    def __init__(self, rules: Rules, ledger: Ledger, journal: list[Instruction]) -> None:
        self._rules = rules
        self._books = ledger._books
        self._names = [stage.name for stage in rules.stages]
        self._given: dict[str, int] = {}
        self._reached: dict[int, tuple[int, int]] = {}  # by order: stages done, last attempt
        self._leases: dict[str, Lease] = {}
        for change in journal:
            self._progress(change)

    def before(self) -> None:
        """Remember the leases."""
        rollouts = self._books.rollouts.values()
        leased = [rollout for rollout in rollouts if rollout.state == "leased"]
        self._leases = {r.rollout_id: (r.worker_id, r.attempt, r.deadline) for r in leased}

    def after(self, event: Event, instructions: list[Instruction]) -> None:
        """Check what was answered. Raises: AssertionError or LedgerError."""
        if isinstance(event, FromWorker):
            self._check_fence(event.message)
        self._check_order(instructions)
        for instruction in instructions:
            self._progress(instruction)
            if isinstance(instruction, Dispatch):
                self._check_dispatch(instruction)

    def _check_fence(self, message: Any) -> None:
        """Only an attempt itself renews its lease, or ends it other than by a finished result."""
        match message:
            case StageResult() if message.status != "done":
                named = {(message.rollout_id, message.worker_id, message.attempt)}
            case Heartbeat():
                named = {(name, message.worker_id, attempt) for name, attempt in message.held}
            case _:
                return
        for rollout_id, lease in self._leases.items():
            if (rollout_id, *lease[:2]) not in named:
                rollout = self._books.rollouts[rollout_id]
                if rollout.state == "stopping" and rollout.submission.sampling is not None:
                    continue  # what ended has decided its group
                now = (rollout.worker_id, rollout.attempt, rollout.deadline)
                assert rollout.state == "leased", f"{rollout_id}: {message} ended {lease}"
                assert now == lease, f"{rollout_id}: {message} renewed {lease}"

    def _check_order(self, instructions: list[Instruction]) -> None:
        """Nothing about a rollout leaves before what this event keeps of it."""
        said: set[int] = set()
        for instruction in instructions:
            match instruction:
                case Keep(order):
                    assert order not in said, f"{instruction} comes after what depends on it"
                case Deliver(_, order, _):
                    said.add(order)
                case Dispatch():
                    said |= {instruction.order, instruction.task_order}
                case Settle(_, rollout_id) if rollout_id in self._books.rollouts:
                    said.add(self._books.rollouts[rollout_id].order)

    def _progress(self, change: Instruction) -> None:
        """Stages are committed in order, once, by ever later attempts."""
        match change:
            case Keep(order, StageDone() as entry):
                stages, attempt = self._reached.get(order, (0, 0))
                assert self._names.index(entry.stage) == stages, f"{entry} after {stages} stages"
                assert entry.attempt > attempt, f"{entry} after attempt {attempt}"
                self._reached[order] = (stages + 1, entry.attempt)
            case Keep(order, Rewound()):
                self._reached[order] = (0, self._reached.get(order, (0, 0))[1])

    def _check_dispatch(self, work: Dispatch) -> None:
        """Nobody is given more than fits; no stage more than the next one has room for."""
        worker, rollout = self._books.workers[work.worker_id], self._books.rollouts[work.rollout_id]
        before = self._given.get(work.rollout_id, 0)
        assert work.attempt > before, f"{work} after attempt {before}"
        self._given[work.rollout_id] = work.attempt
        assert len(worker.leases) <= worker.slots, f"{worker.worker_id} has no slot for {work}"
        fits = worker.used_bytes <= worker.bytes or len(worker.leases) == 1
        assert fits, f"{worker.worker_id} has no bytes for {work}"
        if work.stage + 1 < len(self._names) and rollout.deaths < ISOLATE_AFTER:
            self._check_room(work.stage, worker.host)

    def _check_room(self, stage: int, host: str) -> None:
        rollouts = self._books.rollouts.values()
        queued = [r for r in rollouts if r.state == "ready" and r.stage == stage + 1]
        waiting = sum(r.host in {"", host} and r.deaths < ISOLATE_AFTER for r in queued)
        workers = self._books.workers.values()
        on_host = [w for w in workers if (w.stage, w.host) == (stage, host)]
        running = sum(len(worker.leases) for worker in on_host)
        ready = self._rules.stages[stage + 1].ready
        if waiting + running > ready:
            raise LedgerError(f"stage {stage} on {host}: {waiting} + {running} over {ready}")
