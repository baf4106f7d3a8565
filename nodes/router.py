"""The inference router: run workers on one side, backends on the other.

    python -m nodes.router --topology topology.yaml --name router

Job: carry out what `inference.standing` and `inference.placement` decide: sockets, the clock,
signals and logs.
Does not know: who is placed where and why; bodies are forwarded unread, but for those of probes.
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
from dataclasses import asdict
from typing import Any

import zmq
from msgspec.structs import replace

from engine.errors import LocalProtocolError, RemoteProtocolError, RollmqError
from engine.figures import LoopLag
from engine.logs import configure, get_logger
from engine.messages import Announced
from engine.presence import Presence
from engine.process import die_with_parent
from engine.reread import reread_on_hangup
from engine.sockets import Bounds, boot_id, private_directory
from engine.topology import ROUTER_EDGES, Topology, load
from engine.wire import Codec, encode

from .inference import events, messages, probe
from .inference.alignment import sampled_tokens
from .inference.children import Children
from .inference.desk import Desk, Reply
from .inference.door import Door, open_door
from .inference.fleet import Rules
from .inference.peers import Peers, name
from .inference.placement import Placement
from .inference.policies import named
from .inference.refused import Refusals, answer_to
from .inference.roster import Roster
from .inference.standing import Standings, Waits

TICKS_PER_HEARTBEAT = 4
LINGER_MS = 1000

FRONT = Codec[messages.FromRunWorker](messages.FROM_RUN_WORKER)
BACK = Codec[messages.FromBackend](messages.FROM_BACKEND)


class Router:
    """The process's sockets around the standings, the placement in them, and the desk."""

    def __init__(self, topology: Topology, node: str) -> None:
        if topology.router is None:
            raise ValueError("the topology has no router")
        self.router_id = boot_id(node)
        private_directory(topology.run_dir)
        roster = self._roster = Roster.read(topology)
        self._children = Children(topology.run_dir / "logs", topology.timeouts.drain_s)
        self.standings = _standings(topology, self.router_id, roster)
        self.placement = self.standings.placement
        self.desk = Desk(self.standings, roster, self._children, self._do)
        self._version = roster.weights.policy_version if roster.weights else 0
        self._node = node
        self._log = get_logger()
        self._context = zmq.Context()
        self._door = open_door(self._context, topology)
        self._workers, self._backends = (
            Peers(self._context, topology.endpoint(edge), _bounds(topology), edge, self._door)
            for edge in ROUTER_EDGES
        )
        self._presence = Presence(self._context, topology, node, self.router_id, "router")
        self._requests: dict[str, tuple[messages.Generate, list[Any]]] = {}
        self._answer: tuple[messages.Generated, list[Any]] | None = None
        self._events: deque[events.Event] = deque()
        self._ended: dict[str, tuple[list[str], list[str]]] = {}  # tickets, sessions: told together
        self._refusals = Refusals()
        self._lag = LoopLag()
        self._tick_s = topology.timeouts.heartbeat_s / TICKS_PER_HEARTBEAT
        self._drain_s = topology.timeouts.drain_s
        self._stop_asked = False
        self._start_added(roster)

    def _start_added(self, roster: Roster) -> None:
        """Start what was added before a restart; what fits the topology no more is left out."""
        for added in roster.kept.added:
            try:
                roster.write_topology(added)
                self._children.start(added, roster.file(added), time.monotonic())
            except (RollmqError, OSError) as wrong:
                self._log.error("added backend not started", child=added.node, error=str(wrong))

    def stop(self, *_signal: Any) -> None:
        """Ask the loop to drain and end."""
        self._stop_asked = True

    def reread(self, topology: Topology) -> None:
        """Know the backends of another text of the topology."""
        self._roster.topology = topology
        if self._door is not None:
            self._door.go_by(topology)

    def run(self) -> int:
        """Serve until stopped, and return the exit status."""
        self._log.info("router ready", front=self._workers.endpoint, back=self._backends.endpoint)
        poller = self._poller()
        tick_at = give_up_at = 0.0
        while not self._is_over(give_up_at):
            poller.poll(int(1000 * max(0.0, min(tick_at - time.monotonic(), self._tick_s))))
            woken_at = time.monotonic()
            self._receive_from_workers()
            self._receive_from_backends()
            self._receive_from_clients()
            if self._stop_asked and not self.placement.is_closing:
                give_up_at = time.monotonic() + self._drain_s
                self._do(events.Closing())
            if time.monotonic() >= tick_at:
                tick_at = time.monotonic() + self._tick_s
                self._tick()
            for backend in list(self._ended):
                self._tell_ended(backend)
            self._handle_all()
            now = time.monotonic()
            self._lag.took(now - woken_at, now)
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
        self._children.close()
        for peers in (self._workers, self._backends):
            peers.flush()
            peers.close(LINGER_MS)
        self._presence.close()
        if self._door is not None:
            self._door.gatekeeper.close()
        self._context.term()

    def _tick(self) -> None:
        self._children.watch(time.monotonic())
        if self._door is not None:
            self._shut_out(self._door)
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
        figures = {
            **self.placement.figures(),
            "garbage": self._refusals.total,
            "policy_version": self._version,
            "loop_lag_s": self._lag.worst_s,
        }
        now = time.monotonic()
        self._presence.beat(now, figures, self.desk.parts(now))

    def _shut_out(self, door: Door) -> None:
        """Let backends go whose host's key was revoked: they are sent nothing more."""
        hosts = door.shut_out(time.monotonic())
        for backend in [each for each in self.placement.backends if door.host_of(each) in hosts]:
            self._do(events.BackendGone(backend, "the key of its host was revoked"))

    def _receive_from_clients(self) -> None:
        for message, body in self._presence.asked():
            self._reply(self.desk.asked(message, body, time.monotonic()))

    def _reply(self, replies: Sequence[Reply]) -> None:
        for answer, body in replies:
            try:
                self._presence.tell(answer, body)
            except LocalProtocolError as wrong:
                self._log.error("answer not sent", request_id=answer.request_id, error=str(wrong))

    def _receive_from_workers(self) -> None:
        for peer, frames, doubt in self._workers.receive():
            try:
                message, body = _decode(FRONT, frames, doubt)
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
            case messages.Abort(request_ids):
                for request_id in request_ids:
                    self._do(events.Aborted(peer, request_id))
            case messages.Release(sessions):
                for session in sessions:
                    self._do(events.Released(session))
            case messages.RouterPing():
                unknown = tuple(each for each in message.open if each not in self._requests)
                pong = messages.RouterPong(self.router_id, message.number, unknown)
                self._to_worker(peer, pong)
                self._handle_all()

    def _receive_from_backends(self) -> None:
        for peer, frames, doubt in self._backends.receive():
            try:
                message, body = _decode(BACK, frames, doubt)
            except RemoteProtocolError as wrong:
                self._refuse(peer, wrong)
                if doubt is not None:
                    why = messages.BackendRefused(self.router_id, str(doubt))
                    self._to_backend(name(peer), why)
                    self._handle_all()
            else:
                self._from_backend(name(peer), message, body)

    def _from_backend(self, peer: str, message: messages.FromBackend, body: list[Any]) -> None:
        match message:
            case messages.Generated():
                self._generated(peer, message, body)
            case messages.GenerateFailed():
                why = (message.code, message.message, message.retry)
                self._do(events.Refused(peer, message.request_id, *why))
            case messages.Aborted(ticket, tokens):
                self._do(events.Stopped(peer, ticket, tokens))
            case messages.UpdateStep():
                self._do(events.Stepped(peer, message))
            case messages.BackendHello():
                offer = (message.node, message.capacity, message.policy_version)
                self._do(events.BackendUp(peer, *offer))
            case messages.BackendHeartbeat():
                told = (message.held, message.policy_version, message.figures)
                self._do(events.BackendAlive(peer, *told))
            case messages.BackendDrain():
                self._do(events.BackendDraining(peer))
            case messages.BackendGoodbye():
                self._do(events.BackendGone(peer, "it said goodbye"))

    def _generated(self, peer: str, message: messages.Generated, body: list[Any]) -> None:
        ticket = message.request_id
        if self.standings.is_probe(ticket):
            self._do(events.Probed(peer, ticket, probe.fault(message, body)))
            return
        self._answer = message, body
        self._do(events.Answered(peer, ticket, sampled_tokens(message)))
        self._answer = None

    def _refuse(self, peer: bytes, wrong: RemoteProtocolError) -> None:
        self._refusals.add(f"{peer!r}: {wrong}", time.monotonic())

    def _do(self, event: events.Event) -> None:
        self._events.append(event)
        self._handle_all()

    def _handle_all(self) -> None:
        while self._events:
            for instruction in self.standings.handle(self._events.popleft(), time.monotonic()):
                self._carry_out(instruction)

    def _carry_out(self, instruction: events.Instruction) -> None:
        match instruction:
            case events.Dispatch(backend, ticket, request_id, salt):
                message, body = self._requests[request_id]
                ticketed = replace(message, request_id=ticket, cache_salt=salt)
                self._to_backend(backend, ticketed, body)
            case events.Deliver(client, request_id, backend):
                asked, _ = self._requests.pop(request_id)
                assert self._answer is not None
                message_, body = self._answer
                prompt_tokens = asked.buffers[0].shape[0] if asked.buffers[0].shape else 0
                self.standings.served(backend, prompt_tokens, message_.cached_tokens)
                self._to_worker(client, replace(message_, request_id=request_id), body)
            case events.Spent(client, request_id, tokens):
                self._to_worker(client, messages.Aborted(request_id, tokens))
            case events.Fail(client, request_id, code, text, retry):
                del self._requests[request_id]
                self._to_worker(client, messages.GenerateFailed(request_id, code, text, retry))
            case events.Drop(request_id):
                del self._requests[request_id]
            case events.Lost() | events.Standing() | events.AllPaused() | events.Published():
                self._report(instruction)
            case _:
                self._tell_backend(instruction)

    def _tell_backend(self, instruction: events.Instruction) -> None:
        match instruction:
            case events.Stop(backend, ticket):
                self._ended.setdefault(backend, ([], []))[0].append(ticket)
            case events.Forget(backend, session):
                self._ended.setdefault(backend, ([], []))[1].append(session)
            case events.Welcome(backend):
                self._to_backend(backend, messages.BackendWelcome(self.router_id))
            case events.AskHello(backend):
                self._to_backend(backend, messages.BackendHelloAgain(self.router_id))
            case events.Probe(backend, ticket):
                self._to_backend(backend, *probe.probe_request(ticket))
            case events.Refuse(backend, node, reason):
                self._log.error("backend refused", backend=node, boot_id=backend, reason=reason)
                self._to_backend(backend, messages.BackendRefused(self.router_id, reason))
            case events.TellStep(backend, message):
                self._to_backend(backend, message)

    def _report(
        self, told: events.Lost | events.Standing | events.AllPaused | events.Published
    ) -> None:
        match told:
            case events.Lost(backend, node, reason, sessions, requests):
                self._log.warning(
                    "backend lost",
                    backend=node,
                    boot_id=backend,
                    reason=reason,
                    sessions=sessions,
                    requests=requests,
                )
            case events.Standing(backend, node, state, reason):
                self._log.info(
                    "backend is", state=state, backend=node, boot_id=backend, reason=reason
                )
                self._presence.hurry()
            case events.AllPaused(update_id):
                self._reply(self.desk.paused(update_id))
            case events.Published():
                self._log.info("published", **asdict(told))
                if told.done:
                    self._version = told.policy_version
                    self._presence.tell(Announced(self._node, "policy_version", self._version))
                self._reply(self.desk.published(told))

    def _tell_ended(self, backend: str) -> None:
        """Tell a backend what it has to stop and may forget, before anything else is told."""
        tickets, sessions = self._ended.pop(backend)
        if tickets:
            self._to_backend(backend, messages.Abort(tuple(tickets)))
        if sessions:
            self._to_backend(backend, messages.Release(tuple(sessions)))

    def _to_worker(
        self, client: str, message: messages.ToRunWorker, body: Sequence[Any] = ()
    ) -> None:
        if not self._workers.send(client, encode(message, body)):
            self._events.append(events.ClientGone(client))

    def _to_backend(
        self, backend: str, message: messages.ToBackend, body: Sequence[Any] = ()
    ) -> None:
        if backend in self._ended:
            self._tell_ended(backend)
        if not self._backends.send(backend, encode(message, body)):
            self._events.append(events.BackendGone(backend, "its connection is closed"))


def _decode(codec: Codec[Any], frames: list[Any], doubt: RemoteProtocolError | None) -> Any:
    if doubt is not None:
        raise doubt
    return codec.decode(frames)


def _standings(topology: Topology, router_id: str, roster: Roster) -> Standings:
    router, timeouts = topology.router, topology.timeouts
    assert router is not None
    waits = Waits(timeouts.start_s, timeouts.start_s, timeouts.lease_s)
    rules = Rules(
        router.queue,
        router.idle_s,
        timeouts.lease_s,
        timeouts.connect_s,
        timeouts.cancel_grace_s,
        router.sessions,
    )
    return Standings(
        Placement(named(router.policy), rules, router_id),
        waits,
        router_id,
        roster.weights,
        drained=frozenset(roster.kept.drained),
        removed=frozenset(roster.kept.removed),
        share_prefix=router.share_prefix_across_versions,
    )


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
    reread_on_hangup(options.topology, options.name, router.reread)
    signal.signal(signal.SIGTERM, router.stop)
    signal.signal(signal.SIGINT, router.stop)
    return router.run()


if __name__ == "__main__":
    sys.exit(main())
