"""The ledger against a model that is told only what has left the broker.

Every rule is one thing that a trainer, a worker, the clock, the disk or a crash may do. Whatever
the ledger says waits in an outbox until the journal rows before it are durable; a crash loses the
outbox and the rows that are not. At the end everybody behaves, and everything must end.
"""

from collections import deque
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.ledger import (
    Deliver,
    Dispatch,
    DropTrainer,
    FromWorker,
    Instruction,
    Keep,
    KeepValue,
    PipeClosed,
    Reply,
    Settle,
    Tell,
    TrainerGone,
)
from engine.ledger.grounds import Grounds
from engine.messages import (
    Accepted,
    Cancelled,
    HelloAgain,
    StageResult,
    Welcome,
    WorkerWelcome,
)
from engine.records import Failure

from ..ledger_kit import RULES, Driver, buffers
from .model import Model, Process

STAGES = tuple(stage.name for stage in RULES.stages)
CLIENTS = ("one", "two")
TIGHT = replace(RULES, rollouts=12, bytes=4_000, retention_s=5.0)


class LedgerMachine(RuleBasedStateMachine):
    """Rules that do something, and an invariant after each."""

    @initialize()
    def begin(self) -> None:
        self.driver = Driver(TIGHT)
        self.outbox: deque[tuple[int, Instruction]] = deque()
        self.grounds = Grounds()
        self.durable = 0
        self.clients = {name: Model() for name in CLIENTS}
        self.processes: dict[str, Process] = {}
        self.sent: list[tuple[StageResult, int]] = []
        self.names = 0
        for name in CLIENTS:
            self.hello(name, 3)
        for stage in STAGES:
            self.start_worker(stage, "a", 2, 5000)
        self.submit("one", 3, 0, 10)
        self.commit_all()

    def settle(self) -> None:
        """Take what the last event gave: keep it, answer workers, put the rest in the outbox."""
        journal = iter(range(self.seen_rows + 1, len(self.driver.journal.changes) + 1))
        position = self.seen_rows
        for instruction in self.driver.last:
            if type(instruction).__name__ in {"Keep", "KeepValue", "ForgetValue", "Forget"}:
                position = next(journal)
                if isinstance(instruction, Keep | KeepValue):
                    self.grounds.kept(instruction, position)
            elif isinstance(instruction, Reply):
                self.answer(instruction)
            elif isinstance(instruction, DropTrainer):
                self.clients[instruction.client_id].welcomed = False
            elif isinstance(instruction, Dispatch) and self.grounds.of(instruction) <= self.durable:
                self.arrive(instruction)
            else:
                self.outbox.append((position, instruction))
        self.seen_rows = position

    seen_rows = 0

    def answer(self, reply: Reply) -> None:
        process = self.processes.get(reply.worker_id)
        if process is None:
            return
        if isinstance(reply.message, WorkerWelcome):
            process.welcomed = True
        if isinstance(reply.message, HelloAgain):
            process.welcomed = False
        for key in getattr(reply.message, "drop", ()):
            process.held.pop(key, None)

    def arrive(self, work: Dispatch) -> None:
        process = self.processes.get(work.worker_id)
        if process is not None and process.welcomed:
            process.held.setdefault((work.rollout_id, work.attempt), None)

    def leave_outbox(self) -> None:
        self.grounds.durable(self.durable)
        while self.outbox and self.outbox[0][0] <= self.durable:
            match self.outbox.popleft()[1]:
                case Dispatch() as work:
                    self.arrive(work)
                case Settle(worker_id, rollout_id, attempt):
                    process = self.processes.get(worker_id)
                    if process is not None and process.held.get((rollout_id, attempt)):
                        del process.held[rollout_id, attempt]
                case Deliver(client_id, _, result) if self.clients[client_id].welcomed:
                    self.clients[client_id].take(result)
                case Tell(client_id, message):
                    self.tell(self.clients[client_id], message)

    def tell(self, client: Model, message: Any) -> None:
        match message:
            case Welcome():
                client.welcomed = True
                client.unacked.clear()
            case Cancelled() as answer:
                named = {receipt.rollout_id for receipt in answer.receipts}
                assert len(named) == len(answer.receipts), "one receipt for a rollout"
                for result in client.by_seq.values():
                    assert result.rollout_id not in named or result.outcome == "cancelled"
                client.cancelled |= named
            case Accepted(submit_id):
                client.accepted.add(submit_id)

    # Trainers

    @rule(name=st.sampled_from(CLIENTS), window=st.integers(1, 5))
    def hello(self, name: str, window: int) -> None:
        self.clients[name].welcomed = False
        self.driver.client(name, window)
        self.settle()

    @rule(name=st.sampled_from(CLIENTS))
    def hang_up(self, name: str) -> None:
        self.clients[name].welcomed = False
        self.driver.handle(TrainerGone(name))
        self.settle()

    @rule(
        name=st.sampled_from(CLIENTS),
        size=st.integers(1, 4),
        priority=st.integers(0, 1),
        size_bytes=st.sampled_from([10, 300]),
    )
    def submit(self, name: str, size: int, priority: int, size_bytes: int) -> None:
        first = self.names
        self.names += size
        rollouts = [f"{name}-{number}" for number in range(first, first + size)]
        what = {"group": f"g{first}", "priority": priority, "size_bytes": size_bytes}
        self.driver.submit(*rollouts, client=name, **what)
        self.settle()
        if first % 2:
            self.driver.submit(*rollouts, client=name, **what)
            self.settle()

    @rule(name=st.sampled_from(CLIENTS), data=st.data())
    def acknowledge(self, name: str, data: st.DataObject) -> None:
        client = self.clients[name]
        if client.unacked:
            seqs = data.draw(st.lists(st.sampled_from(sorted(client.unacked)), min_size=1))
            self.driver.ack(*((seq, seq) for seq in seqs), client=name, window=4)
            client.unacked.difference_update(seqs)
            self.settle()

    @rule(name=st.sampled_from(CLIENTS), data=st.data(), how=st.sampled_from("rge"))
    def cancel(self, name: str, data: st.DataObject, how: str) -> None:
        mine = [
            rollout
            for rollout in self.driver.ledger._books.rollouts.values()
            if rollout.submission.client_id == name
        ]
        if mine:
            some = data.draw(st.lists(st.sampled_from(mine), min_size=1, max_size=3))
            names = [rollout.rollout_id for rollout in some] if how == "r" else []
            groups = tuple({r.submission.group_id: 0 for r in some}) if how == "g" else ()
            cancel_id = data.draw(st.sampled_from(["c1", "c2"]))
            what = {"cancel_id": cancel_id, "group_ids": groups, "everything": how == "e"}
            self.driver.cancel(*names, client=name, **what)
            self.settle()

    # Workers

    @rule(
        stage=st.sampled_from(STAGES),
        host=st.sampled_from("ab"),
        slots=st.integers(0, 3),
        size_bytes=st.sampled_from([200, 5000]),
    )
    def start_worker(self, stage: str, host: str, slots: int, size_bytes: int) -> None:
        """A node's new process; the one before is gone without a word."""
        self.names += 1
        node = f"{stage}-{host}"
        self.processes = {k: p for k, p in self.processes.items() if p.node != node}
        process = Process(f"{node}.{self.names}", node, stage, host, slots)
        self.processes[process.worker_id] = process
        self.say_hello(process, size_bytes)

    def say_hello(self, process: Process, size_bytes: int = 5000) -> None:
        self.driver.worker(
            process.worker_id,
            process.stage,
            host=process.host,
            slots=process.slots,
            size_bytes=size_bytes,
            held=tuple(process.held),
            node=process.node,
        )
        self.settle()

    def some_process(self, data: st.DataObject) -> Process:
        return self.processes[data.draw(st.sampled_from(sorted(self.processes)))]

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        process = self.some_process(data)
        if process.welcomed:
            self.driver.heartbeat(process.worker_id, *process.held)
            self.settle()
        else:
            self.say_hello(process)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), slots=st.integers(0, 3))
    def change_credit(self, data: st.DataObject, slots: int) -> None:
        process = self.some_process(data)
        process.slots = slots
        self.driver.credit(process.worker_id, slots)
        self.settle()

    @precondition(lambda self: any(p.held for p in self.processes.values()))
    @rule(
        data=st.data(),
        status=st.sampled_from(["done", "done", "done", "failed", "lost", "released", "cancelled"]),
        flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
        size_bytes=st.sampled_from([0, 0, 500]),
    )
    def finish(
        self, data: st.DataObject, status: Any, flags: tuple[bool, bool, bool], size_bytes: int
    ) -> None:
        busy = {name: p for name, p in self.processes.items() if p.held}
        process = busy[data.draw(st.sampled_from(sorted(busy)))]
        key = data.draw(st.sampled_from(sorted(process.held)))
        final, pinned, retry = flags
        if process.held[key] is None:
            failure = Failure(process.stage, key[1], "sandbox", "SandboxError", "no", process.node)
            process.held[key] = StageResult(
                process.worker_id,
                key[0],
                process.stage,
                key[1],
                status,
                0.1,
                final=final and status == "done",
                pinned=pinned and status == "done",
                reward=1.0 if status == "done" else 0.0,
                failure=failure if status in {"failed", "lost"} else None,
                retry=retry,
                buffers=buffers(size_bytes, process.stage),
            )
        result = process.held[key]
        assert result is not None
        self.sent.append((result, size_bytes))
        self.driver.handle(FromWorker(result, size_bytes))
        self.settle()

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def repeat_a_result(self, data: st.DataObject) -> None:
        """Any result that was ever sent comes again, however late."""
        self.driver.handle(FromWorker(*data.draw(st.sampled_from(self.sent))))
        self.settle()

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), known=st.booleans())
    def lose_worker(self, data: st.DataObject, known: bool) -> None:
        process = self.some_process(data)
        del self.processes[process.worker_id]
        culprit = next(iter(process.held))[0] if known and process.held else ""
        self.driver.lost(process.worker_id, culprit)
        self.settle()

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        process = self.some_process(data)
        del self.processes[process.worker_id]
        self.driver.goodbye(process.worker_id)
        self.settle()

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def close_pipe(self, data: st.DataObject) -> None:
        process = self.some_process(data)
        self.outbox = deque(
            (position, left)
            for position, left in self.outbox
            if not isinstance(left, Dispatch | Settle) or left.worker_id != process.worker_id
        )
        self.driver.handle(PipeClosed(process.worker_id))
        self.settle()

    # Time, disk and crashes

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.driver.tick(seconds)
        self.settle()

    @rule(rows=st.integers(1, 6))
    def commit(self, rows: int) -> None:
        self.durable = min(self.seen_rows, self.durable + rows)
        self.leave_outbox()

    @rule()
    def commit_all(self) -> None:
        self.commit(self.seen_rows)

    @rule()
    def crash(self) -> None:
        driver = self.driver
        driver.journal.crash(self.durable)
        self.outbox.clear()
        self.grounds = Grounds()
        driver.restart()
        self.durable = self.seen_rows = len(driver.journal.changes)
        for client in self.clients.values():
            client.welcomed = False
        for process in self.processes.values():
            process.welcomed = False

    @invariant()
    def the_books_are_right(self) -> None:
        self.driver.ledger.validate()

    # The end

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        for stage in STAGES:
            for host in "ab":
                self.start_worker(stage, host, 3, 5000)
        for name in CLIENTS:
            self.hello(name, 4)
        books = self.driver.ledger._books
        for _ in range(150):
            if not books.held_rollouts:
                break
            self.go_on()
        left = [r.rollout_id for r in books.rollouts.values() if r.state != "acked"]
        assert not left, f"these never end: {left}"

    def go_on(self) -> None:
        """One second in which everybody does what is expected of them."""
        self.commit_all()
        for process in list(self.processes.values()):
            if not process.welcomed:
                self.say_hello(process)
            self.driver.heartbeat(process.worker_id, *process.held)
            self.settle()
            for rollout_id, attempt in list(process.held):
                self.driver.result(process.worker_id, rollout_id, attempt, reward=1.0)
                self.settle()
        self.commit_all()
        for name, client in self.clients.items():
            for seq in sorted(client.unacked):
                self.driver.ack((seq, seq), client=name, window=4)
                self.settle()
            client.unacked.clear()
        self.pass_time(1.0)
        self.commit_all()


LedgerMachine.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLedgerMachine = LedgerMachine.TestCase
