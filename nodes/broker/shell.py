"""Instructions into actions: the journal first, and everything else once it is durable.

The one rule of this module: nothing leaves before all that the ledger knew when it decided on it is
on disk. Each instruction is stamped with the journal's last position; `release` carries out those
whose position is durable, in order. Work goes earlier, once what it stands on itself is durable,
while its worker has fewer results that wait for the disk than slots. Answers on the control socket
(heartbeats, hellos) do not wait: they speak of leases only. Nor does the answer to a trainer's
hello: with a full disk it says that there is a broker, and promises nothing.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from engine.figures import Histogram
from engine.journal import Journal, NullJournal
from engine.ledger import (
    Deliver,
    Dispatch,
    DropTrainer,
    DropWorker,
    Forget,
    ForgetValue,
    FreeBody,
    Instruction,
    Keep,
    KeepValue,
    Reply,
    Settle,
    StopAttempts,
    Tell,
)
from engine.ledger.grounds import Grounds
from engine.messages import Held, Message, ResultAck, Stop, Welcome, Work, WorkerWelcome
from engine.records import Buffer
from engine.wire import encode, forward, write_json

from ..tracing.rollouts import RolloutSpans
from .bodies import Bodies
from .peers import Connections, WorkPipes


class Served(NamedTuple):
    """What the shell must know of a stage; `slots` are a worker's."""

    name: str
    timeout_s: float
    slots: int


class Shell:
    """Carries out instructions with a journal, bodies and connections."""

    def __init__(
        self,
        journal: Journal | NullJournal,
        bodies: Bodies,
        trainers: Connections,
        workers: Connections,
        pipes: WorkPipes,
        publish: Any,
        stages: Sequence[Served],
        broker_id: str,
        spans: RolloutSpans | None = None,
    ) -> None:
        self._journal = journal
        self._bodies = bodies
        self._trainers = trainers
        self._workers = workers
        self._pipes = pipes
        self._publish = publish
        self._stages = stages
        self._broker_id = broker_id
        self._spans = spans
        self._position = journal.durable
        self._grounds = Grounds()
        self._gated: deque[tuple[int, Instruction, float]] = deque()
        self._work: list[Dispatch] = []  # that may leave at once
        self._unsettled: Counter[str] = Counter()  # results that wait for the disk, by worker
        self._settled: defaultdict[str, list[Held]] = defaultdict(list)
        self.counts: Counter[str] = Counter()
        self.dispatch_wait = Histogram()  # from decided to sent, which is the disk's time

    def take(
        self,
        instructions: Sequence[Instruction],
        buffers: tuple[Buffer, ...] = (),
        body: Sequence[Any] = (),
    ) -> None:
        """Journal what must be kept and queue the rest behind it.

        `buffers` and `body` are those of the message that the instructions answer.
        """
        now = time.monotonic()
        for instruction in instructions:
            if isinstance(instruction, Keep):
                self._keep(instruction, buffers, body)
            elif isinstance(instruction, KeepValue):
                value = write_json(instruction.value)
                self._position = self._journal.put(instruction.key, value)
                self._grounds.kept(instruction, self._position)
            elif isinstance(instruction, ForgetValue):
                self._position = self._journal.drop(instruction.key)
            elif isinstance(instruction, DropTrainer):
                self._trainers.forget(instruction.client_id)
            elif isinstance(instruction, Reply):
                self._reply(instruction)
            elif isinstance(instruction, DropWorker):  # at once: it may say hello again
                self._pipes.close(instruction.worker_id)
            elif isinstance(instruction, Dispatch) and self._may_leave(instruction):
                self._work.append(instruction)
            elif isinstance(instruction, Tell) and isinstance(instruction.message, Welcome):
                self._forget_deliveries(instruction.client_id)
                self._tell(instruction.client_id, instruction.message)
            else:
                if isinstance(instruction, Settle):
                    self._unsettled[instruction.worker_id] += 1
                self._gated.append((self._position, instruction, now))
        if self._spans is not None:
            self._spans.take(instructions, time.time_ns())
            self._spans.accepted(self._position)

    def _may_leave(self, work: Dispatch) -> bool:
        """Whether work stands on nothing that waits for the disk, and its worker can hold it."""
        slots = self._stages[work.stage].slots
        ready = self._grounds.of(work) <= self._journal.durable and not self._journal.full
        return ready and self._unsettled[work.worker_id] < slots

    def release(self) -> None:
        """Carry out everything whose ground is durable, then send the batched answers."""
        durable = self._journal.durable
        self._grounds.durable(durable)
        gated = self._gated
        now = time.monotonic()
        if self._spans is not None:
            self._spans.durable(durable, time.time_ns())
        while gated and gated[0][0] <= durable:
            _, instruction, decided_at = gated.popleft()
            if instruction.__class__ is Dispatch:
                self.dispatch_wait.add(now - decided_at)
            self._carry_out(instruction)
        for work in self._work:  # after what frees or adds the bodies that it takes along
            self.dispatch_wait.add(0.0)
            self._dispatch(work)
        self._work.clear()
        for worker_id, held in self._settled.items():
            self._pipes.send(worker_id, encode(ResultAck(tuple(held))))
        self._settled.clear()

    def _forget_deliveries(self, client_id: str) -> None:
        """Drop what waits for the disk to be delivered: after a hello all of it comes, in order."""
        self._gated = deque(
            (position, instruction, decided_at)
            for position, instruction, decided_at in self._gated
            if not (isinstance(instruction, Deliver) and instruction.client_id == client_id)
        )

    def go_by(self, stages: Sequence[Served]) -> None:
        """Dispatch with other timeouts and slots from now on."""
        self._stages = stages

    @property
    def waiting(self) -> int:
        """How many instructions wait for the disk."""
        return len(self._gated)

    def _keep(self, keep: Keep, buffers: tuple[Buffer, ...], body: Sequence[Any]) -> None:
        described, frames = (buffers, body) if keep.body else ((), ())
        header = b""
        if self._journal.keeps:
            header = write_json({"entry": keep.entry, "buffers": described})
        kind = keep.entry.__class__.__name__
        self._position, location = self._journal.append(keep.order, kind, header, frames)
        self._grounds.kept(keep, self._position)
        if keep.body:
            self._bodies.add(keep.order, buffers, body, location, self._position)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Dispatch():
                self._dispatch(instruction)
            case Settle(worker_id, rollout_id, attempt):
                self._unsettled[worker_id] -= 1
                if not self._unsettled[worker_id]:
                    del self._unsettled[worker_id]
                self._settled[worker_id].append((rollout_id, attempt))
            case Deliver(client_id, order, result):
                buffers, frames = self._bodies.collect((order,))
                self._tell(client_id, replace(result, buffers=buffers), frames)
            case Tell(client_id, message):
                self._tell(client_id, message)
            case FreeBody(order):
                self._bodies.free(order)
            case Forget(orders):
                self._journal.forget(orders)
            case StopAttempts(held):
                self._publish(encode(Stop(held)))

    def _dispatch(self, work: Dispatch) -> None:
        buffers, frames = self._bodies.collect([work.task_order, work.order])
        stage, timeout_s, _ = self._stages[work.stage]
        message = Work(
            self._broker_id,
            work.rollout_id,
            work.group_id,
            work.task_id,
            work.task_kind,
            stage,
            work.attempt,
            timeout_s,
            buffers,
        )
        self._pipes.send(work.worker_id, forward(message, frames))
        self.counts["dispatched"] += 1

    def _tell(self, client_id: str, message: Message, body: Sequence[Any] = ()) -> None:
        self._trainers.send_name(client_id, encode(message, body))

    def _reply(self, reply: Reply) -> None:
        message = reply.message
        if isinstance(message, WorkerWelcome):
            message = replace(message, work=self._pipes.open(reply.worker_id))
        self._workers.send(reply.worker_id.encode(), encode(message))
