"""Instructions into actions: the journal first, and everything else once it is durable.

The one rule of this module: nothing leaves before all that the ledger knew when it decided on it is
on disk. Each instruction is stamped with the journal's last position; `release` carries out those
whose position is durable, in order. Answers on the control socket (heartbeats, hellos) do not wait:
they speak of leases only. Nor does the answer to a trainer's hello: with a full disk it says that
there is a broker, and promises nothing.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Any

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
from engine.messages import Held, Message, ResultAck, Stop, Welcome, Work, WorkerWelcome
from engine.records import Buffer
from engine.wire import encode, forward, write_json

from ..tracing.rollouts import RolloutSpans
from .bodies import Bodies
from .peers import Connections, WorkPipes


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
        stages: Sequence[tuple[str, float]],
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
        self._gated: deque[tuple[int, Instruction, float]] = deque()
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
            elif isinstance(instruction, ForgetValue):
                self._position = self._journal.drop(instruction.key)
            elif isinstance(instruction, DropTrainer):
                self._trainers.forget(instruction.client_id)
            elif isinstance(instruction, Reply):
                self._reply(instruction)
            elif isinstance(instruction, DropWorker):  # at once: it may say hello again
                self._pipes.close(instruction.worker_id)
            elif isinstance(instruction, Tell) and isinstance(instruction.message, Welcome):
                self._forget_deliveries(instruction.client_id)
                self._tell(instruction.client_id, instruction.message)
            else:
                self._gated.append((self._position, instruction, now))
        if self._spans is not None:
            self._spans.take(instructions, time.time_ns())
            self._spans.accepted(self._position)

    def release(self) -> None:
        """Carry out everything whose ground is durable, then send the batched answers."""
        durable = self._journal.durable
        gated = self._gated
        now = time.monotonic()
        if self._spans is not None:
            self._spans.durable(durable, time.time_ns())
        while gated and gated[0][0] <= durable:
            _, instruction, decided_at = gated.popleft()
            if instruction.__class__ is Dispatch:
                self.dispatch_wait.add(now - decided_at)
            self._carry_out(instruction)
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

    def go_by(self, stages: Sequence[tuple[str, float]]) -> None:
        """Dispatch with other timeouts from now on; `stages` are their names and seconds."""
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
        if keep.body:
            self._bodies.add(keep.order, buffers, body, location, self._position)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Dispatch():
                self._dispatch(instruction)
            case Settle(worker_id, rollout_id, attempt):
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
        stage, timeout_s = self._stages[work.stage]
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
