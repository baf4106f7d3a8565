"""The inference router: run workers on one side, backends on the other.

    python -m nodes.router --topology topology.yaml --name router

Job: carry out what `inference.placement` decides: sockets, the clock, signals and logs.
Does not know: who is placed where and why; bodies are forwarded unread.
Invariants: one thread; sockets are polled, then drained. What cannot be decoded is counted, never
fatal, and answered if it is a `generate` whose request_id can be read. SIGTERM: nothing new is
taken, what is open is answered within timeouts.drain_s, exit 0.
"""

import argparse
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog
import zmq

from engine.errors import RemoteProtocolError, RollmqError
from engine.logs import configure
from engine.process import die_with_parent
from engine.sockets import Bounds, boot_id, drain
from engine.topology import Topology, load
from engine.wire import Codec, encode

from .inference import events, messages
from .inference.fleet import Rules
from .inference.peers import Peers, name
from .inference.placement import Placement
from .inference.policies import named
from .inference.refused import Refusals, answer_to
from .presence import Presence

DRAIN_MESSAGES = 256
PROBES_PER_HEARTBEAT = 4
LINGER_MS = 1000

FRONT = Codec[messages.FromRunWorker](messages.FROM_RUN_WORKER)
BACK = Codec[messages.FromBackend](messages.FROM_BACKEND)


class Router:
    """The process's sockets around one Placement."""

    def __init__(self, topology: Topology, node: str) -> None:
        if topology.router is None:
            raise ValueError("the topology has no router")
        self.router_id = boot_id(node)
        self.placement = _placement(topology, self.router_id)
        self._log = structlog.get_logger()
        self._context = zmq.Context()
        self._workers = Peers(self._context, topology.endpoint("router"), _bounds(topology))
        self._backends = Peers(
            self._context, topology.endpoint("router_backends"), _bounds(topology)
        )
        self._presence = Presence(self._context, topology, node, self.router_id, "router")
        self._requests: dict[str, tuple[messages.Generate, list[Any]]] = {}
        self._answer: tuple[messages.Generated, list[Any]] | None = None
        self._events: deque[events.Event] = deque()
        self._refusals = Refusals()
        self._probe_s = topology.timeouts.heartbeat_s / PROBES_PER_HEARTBEAT
        self._drain_s = topology.timeouts.drain_s
        self._stop_asked = False

    def stop(self, *_signal: Any) -> None:
        """Ask the loop to drain and end."""
        self._stop_asked = True

    def run(self) -> int:
        """Serve until stopped, and return the exit status."""
        self._log.info("router ready", front=self._workers.endpoint, back=self._backends.endpoint)
        poller = self._poller()
        probe_at = give_up_at = 0.0
        while not self._is_over(give_up_at):
            poller.poll(int(1000 * max(0.0, min(probe_at - time.monotonic(), self._probe_s))))
            self._receive_from_workers()
            self._receive_from_backends()
            if self._stop_asked and not self.placement.is_closing:
                give_up_at = time.monotonic() + self._drain_s
                self._do(events.Closing())
            if time.monotonic() >= probe_at:
                probe_at = time.monotonic() + self._probe_s
                self._probe()
        self._close()
        return 0

    def _poller(self) -> zmq.Poller:
        poller = zmq.Poller()
        for socket in (self._workers.socket, self._backends.socket, self._presence.socket):
            poller.register(socket, zmq.POLLIN)
        return poller

    def _is_over(self, give_up_at: float) -> bool:
        if not self.placement.is_closing:
            return False
        return not self.placement.requests or time.monotonic() >= give_up_at

    def _close(self) -> None:
        self._log.info("router stopped", unanswered=len(self.placement.requests))
        for peers in (self._workers, self._backends):
            peers.flush()
            peers.close(LINGER_MS)
        self._presence.close()
        self._context.term()

    def _probe(self) -> None:
        self._refusals.tell(time.monotonic())
        self._do(events.Tick())
        for client in {request.client for request in self.placement.requests.values()}:
            self._to_worker(client, messages.RouterPong(self.router_id, 0, ()))
        for backend, state in list(self.placement.backends.items()):
            if state.running:
                self._to_backend(backend, messages.BackendWelcome(self.router_id))
        self._handle_all()
        self._workers.flush()
        self._backends.flush()
        self._presence.beat(
            time.monotonic(), {**self.placement.figures(), "garbage": self._refusals.total}
        )

    def _receive_from_workers(self) -> None:
        for peer, *frames in drain(self._workers.socket, DRAIN_MESSAGES, copy=False):
            try:
                message, body = FRONT.decode(frames)
            except RemoteProtocolError as wrong:
                self._refuse(peer, wrong)
                answer = answer_to(frames, str(wrong))
                if answer is not None:
                    self._to_worker(name(peer), answer)
                    self._handle_all()
            else:
                self._from_worker(name(peer), message, body)

    def _from_worker(self, peer: str, message: messages.FromRunWorker, body: list[Any]) -> None:
        match message:
            case messages.Generate():
                self._requests.setdefault(message.request_id, (message, body))
                self._do(events.Asked(peer, message.request_id, message.session))
            case messages.Abort():
                self._do(events.Aborted(message.request_id))
            case messages.Release():
                self._do(events.Released(message.session))
            case messages.RouterPing():
                unknown = tuple(each for each in message.open if each not in self._requests)
                pong = messages.RouterPong(self.router_id, message.number, unknown)
                self._to_worker(peer, pong)
                self._handle_all()

    def _receive_from_backends(self) -> None:
        for peer, *frames in drain(self._backends.socket, DRAIN_MESSAGES, copy=False):
            try:
                message, body = BACK.decode(frames)
            except RemoteProtocolError as wrong:
                self._refuse(peer, wrong)
            else:
                self._from_backend(name(peer), message, body)

    def _from_backend(self, peer: str, message: messages.FromBackend, body: list[Any]) -> None:
        match message:
            case messages.Generated():
                self._answer = message, body
                self._do(events.Answered(peer, message.request_id))
                self._answer = None
            case messages.GenerateFailed():
                why = (message.code, message.message, message.retry)
                self._do(events.Refused(peer, message.request_id, *why))
            case messages.BackendHello():
                self._do(events.BackendUp(peer, message.node, message.capacity))
                self._log.info("backend joined", backend=message.node, boot_id=peer)
            case messages.BackendHeartbeat():
                self._do(events.BackendAlive(peer, message.held))
            case messages.BackendDrain():
                self._do(events.BackendDraining(peer))
            case messages.BackendGoodbye():
                self._do(events.BackendGone(peer, "it said goodbye"))

    def _refuse(self, peer: bytes, wrong: RemoteProtocolError) -> None:
        self._refusals.add(f"{peer!r}: {wrong}", time.monotonic())

    def _do(self, event: events.Event) -> None:
        self._events.append(event)
        self._handle_all()

    def _handle_all(self) -> None:
        while self._events:
            for instruction in self.placement.handle(self._events.popleft(), time.monotonic()):
                self._carry_out(instruction)

    def _carry_out(self, instruction: events.Instruction) -> None:
        match instruction:
            case events.Dispatch(backend, ticket, request_id):
                message, body = self._requests[request_id]
                self._to_backend(backend, replace(message, request_id=ticket), body)
            case events.Deliver(client, request_id):
                del self._requests[request_id]
                assert self._answer is not None
                message_, body = self._answer
                self._to_worker(client, replace(message_, request_id=request_id), body)
            case events.Fail(client, request_id, code, text, retry):
                del self._requests[request_id]
                self._to_worker(client, messages.GenerateFailed(request_id, code, text, retry))
            case events.Drop(request_id):
                del self._requests[request_id]
            case _:
                self._tell_backend(instruction)

    def _tell_backend(self, instruction: events.Instruction) -> None:
        match instruction:
            case events.Stop(backend, ticket):
                self._to_backend(backend, messages.Abort(ticket))
            case events.Forget(backend, session):
                self._to_backend(backend, messages.Release(session))
            case events.Welcome(backend):
                self._to_backend(backend, messages.BackendWelcome(self.router_id))
            case events.AskHello(backend):
                self._to_backend(backend, messages.BackendHelloAgain(self.router_id))
            case events.Lost(backend, node, reason, sessions, requests):
                self._log.warning(
                    "backend lost",
                    backend=node,
                    boot_id=backend,
                    reason=reason,
                    sessions=sessions,
                    requests=requests,
                )

    def _to_worker(
        self, client: str, message: messages.ToRunWorker, body: Sequence[Any] = ()
    ) -> None:
        if not self._workers.send(client, encode(message, body)):
            self._events.append(events.ClientGone(client))

    def _to_backend(
        self, backend: str, message: messages.ToBackend, body: Sequence[Any] = ()
    ) -> None:
        if not self._backends.send(backend, encode(message, body)):
            self._events.append(events.BackendGone(backend, "its connection is closed"))


def _placement(topology: Topology, router_id: str) -> Placement:
    router, timeouts = topology.router, topology.timeouts
    assert router is not None
    rules = Rules(router.queue, router.idle_s, timeouts.lease_s, timeouts.connect_s)
    return Placement(named(router.policy), rules, router_id)


def _bounds(topology: Topology) -> Bounds:
    most = max((backend.capacity for backend in topology.backends), default=0)
    queue = max(topology.limits.queue_messages, 2 * most)
    return Bounds(queue, topology.limits.message_bytes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the router until SIGTERM or SIGINT; return the exit status."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="nodes.router", description="the inference router")
    parser.add_argument("--topology", required=True)
    parser.add_argument("--name", default="router")
    options = parser.parse_args(arguments)
    try:
        topology = load(options.topology)
        configure(options.name, topology.log_level)
        router = Router(topology, options.name)
    except RollmqError as wrong:
        print(wrong, file=sys.stderr)  # noqa: T201 - before there is a log
        return 2
    signal.signal(signal.SIGTERM, router.stop)
    signal.signal(signal.SIGINT, router.stop)
    return router.run()


if __name__ == "__main__":
    sys.exit(main())
