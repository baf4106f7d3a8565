"""Samplings over the ledger with everything that goes wrong: the broker, its disk and its workers.

One seed is one schedule. Each step is one thing that a trainer, the network, a worker, the disk or
a user does: results come in any order; connections break and what was sent on them comes again
later; trainers and the broker crash, the broker with any durable prefix of its journal. Then it is
calm, and every sampling must come to its last batch. Nothing here sleeps, reads a clock or starts a
thread.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from engine.ledger import (
    Deliver,
    Dispatch,
    DropTrainer,
    Event,
    FromWorker,
    Instruction,
    Keep,
    Ledger,
    NewPolicy,
    Reply,
    Rules,
    Settle,
    StageRule,
    StopAttempts,
    Submitted,
    Tell,
)
from engine.messages import (
    Heartbeat,
    HelloAgain,
    StageResult,
    WorkerHello,
    WorkerLost,
    WorkerWelcome,
)
from engine.records import Failure, Usage

from ..ledger_kit import Held, MemoryJournal

RULES = Rules(
    stages=(StageRule("run", 2, 100),),
    heartbeat_s=0.5,
    lease_s=2.0,
    retry_delay_s=0.25,
    retention_s=5.0,
    rollouts=100,
    bytes=100_000,
    message_bytes=1_000_000,
    group=16,
    client_window=8,
    client_bytes=1 << 20,
)


@dataclass(slots=True, eq=False)
class Worker:
    """A worker's process: what it holds, with the weights it began with, and what it was told."""

    number: int
    slots: int
    boot: int = 1
    welcomed: bool = False
    held: dict[Held, int] = field(default_factory=dict)
    unwanted: set[Held] = field(default_factory=set)
    results: dict[Held, StageResult] = field(default_factory=dict)

    @property
    def worker_id(self) -> str:
        return f"w-{self.number}.{self.boot}"


class World:
    """Time, chance, the journal, the ledger and its shell."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = 100.0
        self.is_calm = False
        self.version = 0
        self.badness = {
            what: self.rng.choice([0.0, usual, 4 * usual])
            for what, usual in (
                ("broker", 0.2),
                ("worker", 0.3),
                ("trainer", 0.8),
                ("weights", 0.5),
                ("user", 0.2),
            )
        }
        self.trace: deque[str] = deque(maxlen=400)
        self.journal = MemoryJournal()
        self.durable = 0
        self.gated: deque[tuple[int, Instruction]] = deque()
        self.life = 1
        self.crashes = 0
        self.rules = RULES
        self.workers = [Worker(number, self.rng.randint(1, 5)) for number in range(2)]
        self.slots = sum(worker.slots for worker in self.workers)
        self.trainers: dict[str, Any] = {}
        self.submitted: list[tuple[int, Submitted]] = []  # with the position of its row

    def open(self) -> None:
        """Begin, once the trainers are known."""
        room = sum(trainer.reserved for trainer in self.trainers.values())
        self.rules = replace(RULES, rollouts=room + self.rng.choice([0, 3, 50]))
        self.ledger = Ledger(self.rules, "broker-1")
        for trainer in self.trainers.values():
            trainer.start()

    def handle(self, event: Event) -> None:
        """Let the ledger decide, keep what it keeps, and let the rest wait for the disk."""
        self.trace.append(f"> {event}")
        before = {name: self.wanted(name) for name in self.trainers}
        for trainer in self.trainers.values():
            trainer.expect(event)
        instructions = self.ledger.handle(event, self.now)
        self.ledger.validate()
        for instruction in instructions:
            self.trace.append(f"  {instruction}")
            if isinstance(instruction, Reply):
                self._reply(instruction)
            elif self.journal.take(instruction):
                if isinstance(instruction, Keep) and isinstance(instruction.entry, Submitted):
                    self.submitted.append((len(self.journal.changes), instruction.entry))
            else:
                self.gated.append((len(self.journal.changes), instruction))
        self._check_credit(before)
        for trainer in self.trainers.values():
            trainer.check_unacknowledged()
        self.release()

    def wanted(self, name: str) -> int:
        sampling = self.ledger._books.samplings.get((name, f"s-{name}"))
        return sampling.sampler.wanted if sampling else 0

    def _check_credit(self, before: dict[str, int]) -> None:
        if all(self.wanted(name) <= was for name, was in before.items()):
            return
        used, size = 0, 0
        for sampling in self.ledger._books.samplings.values():
            sampler = sampling.sampler
            size = max(size, sampler.spec.group_size)
            connected = self.ledger._books.clients[sampling.client_id].connected
            used += sampler.live + connected * sampler.promised * sampler.spec.group_size
        slots = sum(worker.slots for worker in self.ledger._books.workers.values())
        assert used < slots + size, f"{used} under way or promised, {slots} slots"

    def release(self) -> None:
        while self.gated and self.gated[0][0] <= self.durable:
            self._carry_out(self.gated.popleft()[1])

    def commit(self, rows: int) -> None:
        self.durable = min(len(self.journal.changes), self.durable + rows)
        self.release()

    def commit_all(self) -> None:
        self.commit(len(self.journal.changes))

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Dispatch(worker_id, rollout_id=rollout_id, attempt=attempt):
                worker = self._worker(worker_id)
                if worker is not None and worker.welcomed:
                    worker.held.setdefault((rollout_id, attempt), self.version)
            case Settle(worker_id, rollout_id, attempt):
                worker = self._worker(worker_id)
                if worker is not None and worker.results.pop((rollout_id, attempt), None):
                    del worker.held[rollout_id, attempt]
            case StopAttempts(held):
                for worker in self.workers:
                    worker.unwanted |= set(held) & set(worker.held)
            case DropTrainer(client_id):
                self.trainers[client_id].is_known = False
            case Deliver(client_id, _, message) | Tell(client_id, message):
                self.trainers[client_id].told(message)

    def _reply(self, reply: Reply) -> None:
        worker = self._worker(reply.worker_id)
        if worker is None:
            return
        worker.welcomed = isinstance(reply.message, WorkerWelcome) or (
            worker.welcomed and not isinstance(reply.message, HelloAgain)
        )
        for key in getattr(reply.message, "drop", ()):
            if key in worker.results:
                del worker.results[key], worker.held[key]
            elif key in worker.held:
                worker.unwanted.add(key)

    def _worker(self, worker_id: str) -> Worker | None:
        return next((w for w in self.workers if w.worker_id == worker_id), None)

    # What workers do

    def beat(self, worker: Worker) -> None:
        name, held = worker.worker_id, tuple(worker.held)
        if worker.welcomed:
            self.handle(FromWorker(Heartbeat(name, held, 0.0)))
        else:
            node = f"node-{worker.number}"
            self.handle(FromWorker(WorkerHello(name, node, "a", "run", worker.slots, 10_000, held)))

    def finish(self, worker: Worker, key: Held) -> None:
        if key not in worker.results:
            worker.results[key] = self._result(worker, key)
        self.handle(FromWorker(worker.results[key]))

    def _result(self, worker: Worker, key: Held) -> StageResult:
        rollout_id, attempt = key
        name, prompt, member = rollout_id.rsplit("-", 2)
        status: Any = "cancelled" if key in worker.unwanted else "done"
        if status == "done" and self.rng.random() < 0.1:
            status = "failed"
        informative = Random(f"{name} {prompt}").random() < 0.6
        failure = Failure("run", attempt, "sandbox", "SandboxError", "no", "node")
        return StageResult(
            worker.worker_id,
            rollout_id,
            "run",
            attempt,
            status,
            0.1,
            reward=float(int(member) % 2 if informative else 1) if status == "done" else None,
            usage=Usage(1, 7, 0.5),
            failure=failure if status == "failed" else None,
            retry=self.rng.random() < 0.5,
            policy_version=worker.held[key],
        )

    def kill(self, worker: Worker) -> None:
        name = worker.worker_id
        worker.boot += 1
        worker.welcomed = False
        worker.held, worker.results, worker.unwanted = {}, {}, set()
        if self.rng.random() < 0.5:
            self.handle(FromWorker(WorkerLost(name, "", "Died", "exit status -9")))

    def publish(self) -> None:
        self.version += 1
        self.handle(NewPolicy(self.version))

    def crash(self) -> None:
        """Lose the outbox and what is not durable; everybody must say hello again.

        Rows may be durable that nothing has left for yet.
        """
        self.durable = self.rng.randint(self.durable, len(self.journal.changes))
        self.trace.append(f"the broker crashes at {self.durable}/{len(self.journal.changes)}")
        self.journal.crash(self.durable)
        self.gated.clear()
        self.submitted = [(0, entry) for at, entry in self.submitted if at <= self.durable]
        self.life += 1
        self.crashes += 1
        self.ledger = self.journal.recover(self.rules, f"broker-{self.life}", self.now)
        self.durable = len(self.journal.changes)
        for worker in self.workers:
            worker.welcomed = False
        for trainer in self.trainers.values():
            trainer.is_known = False
        self.handle(NewPolicy(self.version))
