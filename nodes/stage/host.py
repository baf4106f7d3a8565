"""The process that runs handlers: pulls work, keeps each result until it is settled.

`python -m nodes.stage.host` is started by the guardian alone, with a socket pair and the slot
table's memory inherited. It knows no lease: what to stop, the guardian tells it.
"""

import argparse
import asyncio
import contextlib
import faulthandler
import signal
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from engine.errors import RemoteProtocolError, RollmqError
from engine.logs import configure, get_logger
from engine.messages import WORK, Held, ResultAck, StageResult, Work
from engine.messages.worker import AttemptStatus
from engine.process import die_with_parent, spare_collector, work_in_batches
from engine.security import LOOK_S, Line, node_key
from engine.sockets import Bounds, Pump, open_socket
from engine.topology import Topology, later_elsewhere, load
from engine.wire import Codec, encode

from ..inference.client import LazyModel, connect, patience_of
from ..sandboxes.link import AttemptSandboxes, Link
from ..tracing.attempts import AttemptSpans
from ..tracing.export import open_exporter
from ..tracing.spans import is_traced
from .attempt import Attempt, Ended
from .handlers import Handlers
from .pipe import TO_HOST, AreYouThere, Connect, Drop, Here, PipeEnd, Reread
from .table import SlotTable, slots_of

log = get_logger()
MOST_PATIENCE_S = 300.0  # until a result that nobody settles is sent again
UNWANTED = 65_536  # attempts stopped before their work arrived; the oldest are forgotten


@dataclass(slots=True)
class Running:
    """An attempt under way."""

    task: "asyncio.Task[None]"
    attempt: Attempt
    slot: int


@dataclass(slots=True)
class Unsettled:
    """A result that the broker has not settled yet; `patience_s` is how long that may take.

    It doubles with each time it is sent again, so that a link that is slow is not filled with what
    is under way on it already.
    """

    slot: int
    frames: list[Any]
    sent_at: float
    patience_s: float
    sandboxes: AttemptSandboxes


class Host:
    """One worker's handlers, on one asyncio loop."""

    def __init__(
        self, topology: Topology, node: str, worker_id: str, pipe: PipeEnd, table: SlotTable
    ) -> None:
        self._file = topology.path
        self._topology = topology
        self._here = topology.node(node)
        stage = topology.stage(self._here.spec)
        self._node = node
        self._worker_id = worker_id
        self._pipe = pipe
        self._table = table
        self._handlers = Handlers(stage.name, stage.handler)
        self._unpinnable = later_elsewhere(topology, self._here)
        self._free = list(range(table.slots, 0, -1))
        self._bounds = Bounds(topology.limits.queue_messages, topology.limits.message_bytes)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._codec: Codec[Any] = Codec(WORK)
        self._running: dict[Held, Running] = {}
        self._unsettled: dict[Held, Unsettled] = {}
        self._broker_id = ""
        self._endpoint = ""
        self._key = node_key(topology, topology.node(node).host)
        self._work: Pump | None = None
        self._in: Line | None = None
        self._model: LazyModel | None = None
        self._link: Link | None = None
        self._exporter = open_exporter(topology, node)
        self._unwanted: OrderedDict[Held, None] = OrderedDict()  # stopped before they came
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Serve until the guardian closes its end."""
        loop = asyncio.get_running_loop()
        threads = self._table.slots  # one for each plain function: none waits at its own expense
        loop.set_default_executor(ThreadPoolExecutor(threads, "handler"))
        if self._topology.router is not None:
            self._model = LazyModel(lambda: connect(self._topology, self._node, self._timeout_s))
        if self._topology.sandboxes is not None:
            self._link = Link(self._topology.sandbox_socket(self._here.host))
        results = open_socket(self._context, zmq.PUSH, self._bounds)
        self._out = Line(results, self._topology.endpoint("results"), self._key)
        self._results = Pump(results, lambda _: None, self._bounds)
        loop.add_reader(self._pipe.socket, self._from_guardian)
        spare_collector()
        while not self._over.is_set():
            self._look(time.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), LOOK_S)
        await self._leave()

    @property
    def _timeout_s(self) -> float:
        return self._topology.stage(self._here.spec).timeout_s

    def _reread(self) -> None:
        """Go by the file's text of now; a file that cannot be read changes nothing."""
        try:
            self._topology = load(self._file)
        except RollmqError as wrong:
            log.warning("topology not read again", error=str(wrong))
            return
        configure(self._node, self._topology.log_level)
        if self._model is not None:
            self._model.wait_as(patience_of(self._topology, self._timeout_s))

    async def _leave(self) -> None:
        """Stop what runs, so that its sessions are released, and then close the model."""
        running = [each.task for each in self._running.values()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=self._topology.timeouts.cancel_grace_s)
        if self._model is not None:
            await self._model.close()
        if self._link is not None:
            await self._link.close()
        if self._exporter is not None:
            self._exporter.close()

    def _from_guardian(self) -> None:
        for record in self._pipe.receive():
            match record:
                case AreYouThere(nonce):
                    self._pipe.send(Here(nonce))
                    self._send_late(time.monotonic())
                case Connect(broker_id, work):
                    self._connect(broker_id, work)
                case Drop(held):
                    self._drop(held)
                case Reread():
                    self._reread()
        if self._pipe.closed:
            self._over.set()

    def _connect(self, broker_id: str, work: str) -> None:
        if self._work is not None and (broker_id, work) != (self._broker_id, self._endpoint):
            assert self._in is not None
            self._in.close()
            self._work.close()
            self._work = None
        self._broker_id, self._endpoint = broker_id, work
        if self._work is None:
            pull = open_socket(self._context, zmq.PULL, self._bounds)
            self._in = Line(pull, work, self._key)
            self._work = Pump(pull, self._receive, self._bounds, copy=False)
        self._send_again(self._unsettled.values())

    def _look(self, now: float) -> None:
        """Notice refused connections, and what they may have lost."""
        for line in (self._out, self._in):
            seen = line.look(now) if line is not None else None
            if seen is not None and seen.refused:
                log.error("refused by the broker", error=seen.refused)
            if seen is not None and seen.anew and line is self._out:
                self._send_again(self._unsettled.values())

    def _send_late(self, now: float) -> None:
        """Send again what is not settled in time: a link that was cut may have lost it."""
        late = [u for u in self._unsettled.values() if now - u.sent_at >= u.patience_s]
        for unsettled in late:
            unsettled.patience_s = min(2 * unsettled.patience_s, MOST_PATIENCE_S)
        self._send_again(late)

    def _send_again(self, results: Iterable[Unsettled]) -> None:
        for unsettled in results:
            unsettled.sent_at = time.monotonic()
            self._results.send(unsettled.frames)

    def _receive(self, messages: Iterable[list[Any]]) -> None:
        for frames in messages:
            try:
                message, body = self._codec.decode(frames)
            except RemoteProtocolError as wrong:
                log.warning("work refused", field=wrong.field, error=str(wrong))
                continue
            if isinstance(message, ResultAck):
                self._forget(message.held)
            elif message.broker_id == self._broker_id:
                self._begin(message, body)

    def _begin(self, work: Work, body: list[Any]) -> None:
        key = (work.rollout_id, work.attempt)
        if key in self._running:
            return
        if key in self._unwanted:
            self._refuse(work, "cancelled")
            return
        if not self._free:
            self._refuse(work, "released")
            return
        slot = self._free.pop()
        self._table.begin(slot, key, time.monotonic() + work.timeout_s)
        attempt = Attempt(
            *(work, self._worker_id, self._node, self._table, slot),
            *(self._model, self._unpinnable, self._link, self._spans_of(work)),
        )
        task = asyncio.create_task(self._serve(key, attempt, body, slot))
        self._running[key] = Running(task, attempt, slot)

    def _spans_of(self, work: Work) -> AttemptSpans | None:
        traces, exporter = self._topology.traces, self._exporter
        if traces is None or exporter is None or not is_traced(work.rollout_id, traces.sample):
            return None
        return AttemptSpans(work.rollout_id, work.stage, work.attempt, exporter.emit)

    def _refuse(self, work: Work, status: AttemptStatus) -> None:
        refused = StageResult(
            self._worker_id, work.rollout_id, work.stage, work.attempt, status, 0.0
        )
        self._results.send(encode(refused))

    async def _serve(self, key: Held, attempt: Attempt, body: list[Any], slot: int) -> None:
        try:
            ended = await attempt.run(body, self._handlers.find)
        except asyncio.CancelledError:  # stopped again while it let go of its sessions
            ended = attempt.cancelled()
        self._end(key, attempt, slot, ended)

    def _end(self, key: Held, attempt: Attempt, slot: int, ended: Ended) -> None:
        del self._running[key]
        self._table.finish(slot)
        frames = attempt.frames(ended, self._bounds.message_bytes)
        self._unsettled[key] = Unsettled(
            slot, frames, time.monotonic(), self._topology.timeouts.lease_s, attempt.sandboxes
        )
        self._results.send(frames)

    def _drop(self, held: Iterable[Held]) -> None:
        for key in held:
            running = self._running.get(key)
            if running is not None:
                running.task.cancel()
                if not running.attempt.has_begun:  # a task that never began runs none of its code
                    self._end(key, running.attempt, running.slot, running.attempt.cancelled())
            elif key in self._unsettled:
                self._forget([key])
            else:
                self._unwanted[key] = None
        while len(self._unwanted) > UNWANTED:
            self._unwanted.popitem(last=False)

    def _forget(self, held: Iterable[Held]) -> None:
        for key in held:
            found = self._unsettled.pop(key, None)
            if found is not None:
                found.sandboxes.settle()
                self._table.clear(found.slot)
                self._free.append(found.slot)


def main() -> int:
    """Run handlers until the guardian is gone; return the exit status."""
    die_with_parent()
    work_in_batches()
    parser = argparse.ArgumentParser(prog="python -m nodes.stage.host", description=__doc__)
    parser.add_argument("--topology", required=True, type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--worker-id", required=True)
    parser.add_argument("--pipe", required=True, type=int)
    parser.add_argument("--table", required=True, type=int)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    topology = load(options.topology)
    configure(options.name, topology.log_level)
    pipe = PipeEnd(socket.socket(fileno=options.pipe), TO_HOST)
    table = SlotTable(options.table, slots_of(options.table))

    async def serve() -> None:
        await Host(topology, options.name, options.worker_id, pipe, table).run()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
