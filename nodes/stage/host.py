"""The process that runs handlers: pulls work, keeps each result until it is settled.

`python -m nodes.stage.host` is started by the guardian alone, with a socket pair and the marker's
memory inherited. It knows no lease: what to stop and what to forget, the guardian tells it.
"""

import argparse
import asyncio
import contextlib
import faulthandler
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog
import zmq

from engine.errors import RemoteProtocolError
from engine.logs import configure
from engine.messages import WORK, Held, StageResult, Work
from engine.process import die_with_parent
from engine.sockets import Bounds, Pump, open_socket
from engine.topology import Topology
from engine.topology_file import load
from engine.wire import Codec, encode

from ..inference.client import RouterModel, connect
from .attempt import Attempt, Ended
from .handlers import Handlers
from .marker import Marker
from .pipe import (
    TO_HOST,
    AreYouThere,
    Connect,
    Drop,
    Finished,
    Gone,
    Here,
    PipeEnd,
    Settled,
    Took,
    batches,
)

log = structlog.get_logger()


class Host:
    """One worker's handlers, on one asyncio loop."""

    def __init__(
        self, topology: Topology, node: str, worker_id: str, pipe: PipeEnd, marker: Marker
    ) -> None:
        stage = topology.stage(topology.node(node).spec)
        self._topology = topology
        self._node = node
        self._worker_id = worker_id
        self._pipe = pipe
        self._marker = marker
        self._handlers = Handlers(stage.name, stage.handler)
        self._free = list(range(2 * stage.slots, 0, -1))
        self._bounds = Bounds(topology.limits.queue_messages, topology.limits.message_bytes)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._codec: Codec[Work] = Codec(WORK)
        self._running: dict[Held, asyncio.Task[None]] = {}
        self._unsettled: dict[Held, list[Any]] = {}
        self._broker_id = ""
        self._work: Pump | None = None
        self._model: RouterModel | None = None
        self._took: list[tuple[str, int, int, float]] = []
        self._finished: list[Held] = []
        self._gone: list[Held] = []
        self._telling = False
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Serve until the guardian closes its end."""
        loop = asyncio.get_running_loop()
        if self._topology.router is not None:
            stage = self._topology.stage(self._topology.node(self._node).spec)
            self._model = connect(self._topology, self._node, stage.timeout_s)
        results = open_socket(self._context, zmq.PUSH, self._bounds)
        results.connect(self._topology.endpoint("results"))
        self._results = Pump(results, lambda _: None, self._bounds)
        loop.add_reader(self._pipe.socket, self._from_guardian)
        await self._over.wait()

    def _from_guardian(self) -> None:
        for record in self._pipe.receive():
            match record:
                case AreYouThere(nonce):
                    self._pipe.send(Here(nonce))
                case Connect(broker_id, work):
                    self._connect(broker_id, work)
                case Drop(held):
                    self._drop(held)
                case Settled(held):
                    self._forget(held)
        if self._pipe.closed:
            self._over.set()

    def _connect(self, broker_id: str, work: str) -> None:
        if self._work is not None and broker_id != self._broker_id:
            self._work.close()
            self._work = None
        self._broker_id = broker_id
        if self._work is None:
            pull = open_socket(self._context, zmq.PULL, self._bounds)
            pull.connect(work)
            self._work = Pump(pull, self._receive, self._bounds, copy=False)
        for frames in self._unsettled.values():
            self._results.send(frames)

    def _receive(self, messages: Iterable[list[Any]]) -> None:
        for frames in messages:
            try:
                work, body = self._codec.decode(frames)
            except RemoteProtocolError as wrong:
                log.warning("work refused", field=wrong.field, error=str(wrong))
                continue
            key = (work.rollout_id, work.attempt)
            if work.broker_id == self._broker_id and key not in self._running:
                self._begin(key, work, body)

    def _begin(self, key: Held, work: Work, body: list[Any]) -> None:
        if not self._free:
            self._refuse(work)
            return
        slot = self._free.pop()
        self._took.append((work.rollout_id, work.attempt, slot, work.timeout_s))
        self._tell_soon()
        attempt = Attempt(work, self._worker_id, self._node, self._marker, slot, self._model)
        task = asyncio.create_task(self._serve(key, attempt, body, slot))
        self._running[key] = task

    def _refuse(self, work: Work) -> None:
        released = StageResult(
            self._worker_id, work.rollout_id, work.stage, work.attempt, "released", 0.0
        )
        self._results.send(encode(released))

    async def _serve(self, key: Held, attempt: Attempt, body: list[Any], slot: int) -> None:
        try:
            ended: Ended = await attempt.run(body, self._handlers.find)
        finally:
            self._free.append(slot)
            del self._running[key]
        frames = attempt.frames(ended, self._bounds.message_bytes)
        self._unsettled[key] = frames
        self._results.send(frames)
        self._finished.append(key)
        self._tell_soon()

    def _drop(self, held: Iterable[Held]) -> None:
        for key in held:
            task = self._running.get(key)
            if task is not None:
                task.cancel()
            else:
                self._forget([key])

    def _forget(self, held: Iterable[Held]) -> None:
        for key in held:
            self._unsettled.pop(key, None)
            self._gone.append(key)
        self._tell_soon()

    def _tell_soon(self) -> None:
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        took, finished, gone = self._took, self._finished, self._gone
        self._took, self._finished, self._gone = [], [], []
        for attempts in batches(took):
            self._pipe.send(Took(attempts))
        for held in batches(finished):
            self._pipe.send(Finished(held))
        for held in batches(gone):
            self._pipe.send(Gone(held))
        if self._pipe.flush():
            asyncio.get_running_loop().call_later(0.01, self._tell_soon)


def main() -> int:
    """Run handlers until the guardian is gone; return the exit status."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m nodes.stage.host", description=__doc__)
    parser.add_argument("--topology", required=True, type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--worker-id", required=True)
    parser.add_argument("--pipe", required=True, type=int)
    parser.add_argument("--marker", required=True, type=int)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    topology = load(options.topology)
    configure(options.name, topology.log_level)
    slots = topology.stage(topology.node(options.name).spec).slots
    pipe = PipeEnd(socket.socket(fileno=options.pipe), TO_HOST)
    marker = Marker(options.marker, 2 * slots)

    async def serve() -> None:
        await Host(topology, options.name, options.worker_id, pipe, marker).run()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
