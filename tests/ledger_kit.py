"""A driver for the ledger: says what trainers and workers say, and keeps what it must keep."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import orjson
from msgspec.structs import replace

from engine.ledger import (
    ENTRIES,
    Dispatch,
    Event,
    Forget,
    ForgetValue,
    FromTrainer,
    FromWorker,
    Instruction,
    Keep,
    KeepValue,
    Ledger,
    Recovery,
    Reply,
    Rules,
    StageRule,
    Tell,
    Tick,
    TrainerGone,
)
from engine.messages import (
    Ack,
    Cancel,
    Heartbeat,
    Hello,
    StageResult,
    Submit,
    WorkerCredit,
    WorkerGoodbye,
    WorkerHello,
    WorkerLost,
)
from engine.records import Buffer, Failure
from engine.wire import write_json

from .promises import Promises

Kind = TypeVar("Kind")
Held = tuple[str, int]

RULES = Rules(
    stages=(StageRule("init", 3, 2), StageRule("run", 3, 4), StageRule("eval", 3, 4)),
    heartbeat_s=1.0,
    lease_s=3.0,
    retry_delay_s=1.0,
    retention_s=60.0,
    rollouts=100,
    bytes=100_000,
    message_bytes=1_000_000,
    group=16,
    client_window=8,
    client_bytes=1 << 20,
)


def buffers(size_bytes: int, name: str = "task") -> tuple[Buffer, ...]:
    return (Buffer(name, "json", (size_bytes,)),) if size_bytes else ()


class MemoryJournal:
    """What a journal keeps: changes by position, of which a prefix is durable."""

    def __init__(self) -> None:
        self.changes: list[Instruction] = []

    def take(self, instruction: Instruction) -> bool:
        """Append a change, if it is one."""
        if isinstance(instruction, Keep | KeepValue | ForgetValue | Forget):
            self.changes.append(instruction)
            return True
        return False

    def crash(self, durable: int) -> None:
        """Lose whatever was not durable, and fold away what was forgotten."""
        entries: list[Keep] = []
        values: dict[str, KeepValue] = {}
        for change in self.changes[:durable]:
            match change:
                case Keep():
                    entries.append(change)
                case KeepValue(key):
                    values[key] = change
                case ForgetValue(key):
                    values.pop(key, None)
                case Forget(orders):
                    gone = frozenset(orders)
                    entries = [entry for entry in entries if entry.order not in gone]
        self.changes = [*entries, *values.values()]

    def recover(self, rules: Rules, broker_id: str, now: float) -> Ledger:
        """Build a ledger from what is left, by way of JSON as a file would."""
        recovery = Recovery(rules, broker_id, now)
        for change in self.changes:
            if isinstance(change, KeepValue):
                recovery.value(change.key, orjson.loads(write_json(change.value)))
        for change in self.changes:
            if isinstance(change, Keep):
                decode = ENTRIES[type(change.entry).__name__]
                recovery.entry(change.order, decode(orjson.loads(write_json(change.entry))))
        recovery.finish()
        return Ledger.recovered(recovery)

    def bodies(self) -> Counter[int]:
        """Count the bodies under each order, as kept."""
        kept = (c for c in self.changes if isinstance(c, Keep) and c.body)
        return Counter(change.order for change in kept)


class Driver:
    """A ledger with a clock, a journal, and short ways to say things to it."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.rules = rules
        self.ledger = Ledger(rules, "broker-1")
        self.journal = MemoryJournal()
        self.now = 100.0
        self.last: list[Instruction] = []
        self.dispatched: list[Dispatch] = []
        self.stages: dict[str, str] = {}
        self.restarts = 1
        self.promises = Promises(rules, self.ledger, [])
        self.submits = 0

    def handle(self, event: Event) -> list[Instruction]:
        """Pass an event on; every invariant holds after it."""
        self.promises.before()
        self.last = self.ledger.handle(event, self.now)
        self.ledger.validate()
        self.promises.after(event, self.last)
        for instruction in self.last:
            self.journal.take(instruction)
        self.dispatched += self.only(Dispatch)
        return self.last

    def only(self, kind: type[Kind]) -> list[Kind]:
        """Return the instructions of one kind that the last event gave."""
        return [instruction for instruction in self.last if isinstance(instruction, kind)]

    def entries(self, kind: type[Kind]) -> list[Kind]:
        """Return the entries of one kind that the last event kept."""
        return [keep.entry for keep in self.only(Keep) if isinstance(keep.entry, kind)]

    def told(self, kind: type[Kind]) -> list[Kind]:
        """Return the messages of one kind that the last event sent to trainers or workers."""
        messages = [i.message for i in self.last if isinstance(i, Tell | Reply)]
        return [message for message in messages if isinstance(message, kind)]

    def tick(self, after_s: float = 0.0) -> list[Instruction]:
        """Let time pass, then look at the clock once."""
        self.now += after_s
        return self.handle(Tick())

    def beat(self, seconds: float, **held: Iterable[Held]) -> None:
        """Let time pass in steps of a heartbeat, in which these workers name what they hold."""
        for _ in range(round(seconds / self.rules.heartbeat_s)):
            self.now += self.rules.heartbeat_s
            for worker_id, attempts in held.items():
                self.heartbeat(worker_id, *attempts)
            self.tick()

    def client(self, client_id: str = "trainer", window: int = 8) -> list[Instruction]:
        """Say hello as a trainer."""
        return self.handle(FromTrainer(client_id, Hello(client_id, window)))

    def leave(self, client_id: str = "trainer") -> list[Instruction]:
        """End a trainer's connection."""
        return self.handle(TrainerGone(client_id))

    def submit(
        self,
        *rollout_ids: str,
        client: str = "trainer",
        group: str = "group",
        priority: int = 0,
        size_bytes: int = 10,
    ) -> list[Instruction]:
        """Submit rollouts of one task."""
        self.submits += 1
        name = f"submit-{self.submits}"
        message = Submit(name, group, "task", "math", rollout_ids, buffers(size_bytes))
        message = replace(message, priority=priority)
        return self.handle(FromTrainer(client, message, size_bytes))

    def ack(
        self, *ranges: tuple[int, int], client: str = "trainer", window: int = 8
    ) -> list[Instruction]:
        """Acknowledge ranges of results."""
        return self.handle(FromTrainer(client, Ack(ranges, window)))

    def cancel(self, *rollout_ids: str, client: str = "trainer", **what: Any) -> list[Instruction]:
        """Cancel rollouts; `what` may name group_ids, everything or another cancel_id."""
        cancel_id = what.pop("cancel_id", "cancel")
        return self.handle(FromTrainer(client, Cancel(cancel_id, rollout_ids, **what)))

    def worker(
        self,
        worker_id: str,
        stage: str = "init",
        *,
        host: str = "a",
        slots: int = 2,
        size_bytes: int = 10_000,
        held: Sequence[Held] = (),
        node: str = "",
    ) -> list[Instruction]:
        """Say hello as a worker."""
        self.stages[worker_id] = stage
        message = WorkerHello(
            worker_id, node or f"node-{worker_id}", host, stage, slots, size_bytes, tuple(held)
        )
        return self.handle(FromWorker(message))

    def heartbeat(self, worker_id: str, *held: Held) -> list[Instruction]:
        """Renew what a worker holds."""
        return self.handle(FromWorker(Heartbeat(worker_id, held, 0.0)))

    def credit(self, worker_id: str, slots: int, size_bytes: int = 10_000) -> list[Instruction]:
        """Change a worker's credit."""
        return self.handle(FromWorker(WorkerCredit(worker_id, slots, size_bytes)))

    def lost(self, worker_id: str, culprit: str = "") -> list[Instruction]:
        """Say that a worker's process is gone."""
        return self.handle(FromWorker(WorkerLost(worker_id, culprit, "Died", "exit status -9")))

    def goodbye(self, worker_id: str) -> list[Instruction]:
        """Leave as a worker."""
        return self.handle(FromWorker(WorkerGoodbye(worker_id)))

    def result(
        self, worker_id: str, rollout_id: str, attempt: int, status: Any = "done", **fields: Any
    ) -> list[Instruction]:
        """Say how an attempt ended; `size_bytes` is what it leaves."""
        size_bytes = fields.pop("size_bytes", 0)
        stage = fields.pop("stage", self.stages[worker_id])
        if status in {"failed", "lost"}:
            failure = Failure(stage, attempt, "sandbox", "SandboxError", "no space", "node")
            fields.setdefault("failure", failure)
        message = StageResult(
            worker_id,
            rollout_id,
            stage,
            attempt,
            status,
            0.5,
            buffers=buffers(size_bytes, "answer"),
            **fields,
        )
        return self.handle(FromWorker(message, size_bytes))

    def restart(self) -> None:
        """Crash with everything durable, and recover."""
        self.journal.crash(len(self.journal.changes))
        self.restarts += 1
        self.ledger = self.journal.recover(self.rules, f"broker-{self.restarts}", self.now)
        self.ledger.validate()
        self.promises = Promises(self.rules, self.ledger, self.journal.changes)

    def state(self, rollout_id: str) -> str:
        """Return a rollout's state."""
        return self.ledger._books.rollouts[rollout_id].state

    def attempts(self, worker_id: str) -> list[Held]:
        """Return every attempt that a worker was ever given."""
        return [(d.rollout_id, d.attempt) for d in self.dispatched if d.worker_id == worker_id]

    def finish(self, rollout_id: str, worker_id: str = "w-only", reward: float = 1.0) -> None:
        """Take a rollout that is the only one ready through its stages on passing workers."""
        for stage in self.rules.stages:
            name = f"{worker_id}-{stage.name}"
            self.worker(name, stage.name, slots=1)
            found = [d for d in self.only(Dispatch) if d.rollout_id == rollout_id]
            self.result(name, rollout_id, found[0].attempt, reward=reward)
            self.goodbye(name)
