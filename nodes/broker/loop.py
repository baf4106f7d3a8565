"""The broker's loop: poll, drain what is there, let the ledger decide, carry it out, send.

One thread, no await a message. Control is drained before work's results, so a bulk of trajectories
never delays a heartbeat. Messages that break the protocol are counted and refused; the peer is told
which field is wrong. The loop knows sockets and the clock; it decides nothing.
"""

import os
import re
import select
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import zmq

from engine.errors import RemoteProtocolError
from engine.figures import BOUNDS_S, LoopLag
from engine.journal import Journal, NullJournal
from engine.ledger import (
    FromTrainer,
    FromWorker,
    Ledger,
    NewPolicy,
    NewRules,
    PipeClosed,
    Rules,
    Tick,
    TrainerGone,
)
from engine.logs import get_logger
from engine.messages import (
    FROM_NODE,
    FROM_TRAINER,
    RESULTS,
    Announced,
    Answered,
    Asked,
    AskNode,
    Boot,
    Goodbye,
    Hello,
    NodeAnswer,
    NodeHello,
    Part,
    Ping,
    Pins,
    Pong,
    Problem,
    Refusal,
    Replaced,
    StageResult,
    Status,
    StatusRequest,
    Submit,
    Unpinned,
    WorkerHello,
    WorkerLost,
)
from engine.messages.trainer import ProblemCode
from engine.messages.worker import AskerRole
from engine.security import Denied, Peer
from engine.sockets import Bounds, drain, drain_known, send
from engine.topology import Topology
from engine.wire import Codec, encode, json_buffer, size_bytes

from .access import Access, Events
from .applying import Applying
from .gate import POLICY
from .others import Others
from .peers import Connections, WorkPipes
from .shell import Shell

Handle = Callable[[list[Any], float, str], None]
log = get_logger()
DRAIN = 128  # messages of one socket before the others have their turn
GATHER_S = 0.003  # at most; a turn costs as much as a few messages
GAP_S_A_MESSAGE = 0.0001
LATE_TICKS = 4  # a heartbeat
BUSY_POLL_MS = 2  # how soon a full pipe is tried again


@dataclass(slots=True)
class Sockets:
    """The broker's bound sockets, and the descriptor that the journal's writer wakes it by."""

    front: zmq.Socket[bytes]
    control: zmq.Socket[bytes]
    results: zmq.Socket[bytes]
    events: Events
    wake: int


class Loop:
    """Runs until `stop` is called (from a signal handler, say)."""

    def __init__(
        self,
        sockets: Sockets,
        ledger: Ledger,
        shell: Shell,
        journal: Journal | NullJournal,
        trainers: Connections,
        workers: Connections,
        pipes: WorkPipes,
        broker_id: str,
        tick_s: float,
        figures: Callable[[], dict[str, Any]],
        applying: Applying,
        bounds: Bounds,
        lease_s: float,
        access: Access | None = None,
    ) -> None:
        self._sockets = sockets
        self._ledger = ledger
        self._shell = shell
        self._journal = journal
        self._trainers = trainers
        self._workers = workers
        self._pipes = pipes
        self._broker_id = broker_id
        self._tick_s = tick_s
        self._figures = figures
        self._applying = applying
        self._known = _known(applying.topology)
        self._access = access
        self._message_bytes = bounds.message_bytes
        self._from_trainers: Codec[Any] = Codec(FROM_TRAINER)
        self._from_nodes: Codec[Any] = Codec(FROM_NODE)
        self._results: Codec[StageResult] = Codec(RESULTS)
        self._others = Others(self._known, lease_s)
        self._running = True
        self._turned_at = 0.0
        self._handled = 0
        self._lag = LoopLag()
        self._full_since: float | None = None
        self._ticked = (time.monotonic(), 0)  # when, and what was durable then
        self.counts: Counter[str] = Counter()

    def go_by(self, topology: Topology, rules: Rules) -> None:
        """Decide by another topology from now on."""
        self._known = _known(topology)
        self._others.know(self._known)
        self._shell.take(self._ledger.handle(NewRules(rules), time.monotonic()))

    def stop(self) -> None:
        """Leave the loop after the turn under way."""
        self._running = False

    def run(self) -> None:
        """Serve until stopped.

        Raises: JournalError if the journal can no longer be written.
        """
        poller = zmq.Poller()
        for readable in (self._sockets.control, self._sockets.front, self._sockets.results):
            poller.register(readable, zmq.POLLIN)
        poller.register(self._sockets.wake, zmq.POLLIN)
        next_tick, waiting = time.monotonic(), False
        while self._running:
            left_ms = max(0, int((next_tick - time.monotonic()) * 1000) + 1)
            ready = dict(poller.poll(min(left_ms, BUSY_POLL_MS) if waiting else left_ms))
            woken_at = time.monotonic()
            self._let_gather()
            self._turn(ready)
            if time.monotonic() >= next_tick:
                self._tick()
                next_tick = time.monotonic() + self._tick_s
            self._shell.release()
            waiting = self._flush()
            now = time.monotonic()
            self._lag.took(now - woken_at, now)

    def _let_gather(self) -> None:
        """Begin turns apart, the further the more the last one handled; after a pause, at once.

        What is written meanwhile lets go at once of what waited for it: that gathered already.
        """
        ends = self._turned_at + min(GATHER_S, self._handled * GAP_S_A_MESSAGE)
        while (left_s := ends - time.monotonic()) > 0:
            if select.select([self._sockets.wake], [], [], left_s)[0]:
                self._written()
        self._turned_at = time.monotonic()
        self._handled = 0

    def finish(self, deadline_s: float) -> None:
        """Write what is queued and send what then may leave."""
        self._journal.close(deadline_s)
        self._shell.release()
        self._flush()

    def _turn(self, ready: dict[Any, int]) -> None:
        now = time.monotonic()
        if self._sockets.wake in ready:
            self._written()
        if self._sockets.control in ready:
            self._drain("control", self._sockets.control, self._from_node, now)
        if self._sockets.front in ready:
            self._drain("front", self._sockets.front, self._from_trainer, now)
        if self._sockets.results in ready:
            self._drain("results", self._sockets.results, self._result, now, copy=False)
            self._shell.take(self._ledger.place(now))

    def _written(self) -> None:
        with suppress(BlockingIOError):  # while messages gathered it was read already
            os.eventfd_read(self._sockets.wake)
        if self._journal.failure is not None:
            raise self._journal.failure
        self._shell.release()

    def _drain(
        self,
        name: str,
        source: zmq.Socket[bytes],
        handle: Handle,
        now: float,
        *,
        copy: bool = True,
    ) -> None:
        if self._access is None:
            for frames in drain(source, DRAIN, copy=copy):
                self._guard(name, handle, frames, now, "")
        else:
            for key, frames in drain_known(source, DRAIN, copy=copy):
                self._guard(name, handle, frames, now, key)

    def _guard(self, name: str, handle: Handle, frames: list[Any], now: float, key: str) -> None:
        self._handled += 1
        try:
            handle(frames, now, key)
        except RemoteProtocolError as wrong:
            denied = isinstance(wrong, Denied)
            self.counts[f"{'denied' if denied else 'refused'}_on_{name}"] += 1
            log.info("message refused", socket=name, field=wrong.field, error=str(wrong))
            if name != "results":
                code: ProblemCode = "access" if denied else "refused"
                answer = encode(Problem(code, wrong.field[:200], str(wrong)[:2000]))
                connections = self._trainers if name == "front" else self._workers
                connections.send(frames[0], answer)

    def _from_trainer(self, frames: list[Any], now: float, key: str) -> None:
        route = frames[0]
        message, body = self._from_trainers.decode(frames[1:])
        peer = self._expect_trainer(key, route, message)
        if isinstance(message, Hello):
            self._join(message.client_id, route, key)
        client_id = self._trainers.name(route)
        match message:
            case Ping(nonce) if client_id is not None:
                self._shell.take(self._ledger.handle(FromTrainer(client_id, message), now))
                unacked = self._ledger.unacked(client_id)
                self._trainers.send(route, encode(Pong(self._broker_id, nonce, unacked)))
            case StatusRequest(request_id, rollout_id):
                self._trainers.send(route, self._status_frames(request_id, rollout_id, now))
            case _ if client_id is None:
                self._unknown(route, message)
            case AskNode():
                self._ask(client_id, peer, message, body, now)
            case Submit(submit_id=submit_id) if self._journal.full:
                why = "the journal's disk is full; running work goes on, submit again later"
                self._trainers.send(route, encode(Refusal(submit_id, "disk_full", why)))
            case _:
                event = FromTrainer(client_id, message, size_bytes(body))
                instructions = self._ledger.handle(event, now)
                self._shell.take(instructions, getattr(message, "buffers", ()), body)
                if isinstance(message, Goodbye):
                    self._trainers.leave(route)

    def _expect_trainer(self, key: str, route: bytes, message: Any) -> Peer | None:
        """Return who sent a message, if there are keys. Raises: Denied."""
        if self._access is None:
            return None
        try:
            return self._access.gate.trainer(key, self._trainers.key(route), message)
        except Denied:
            if self._trainers.key(route) not in {"", key}:  # its first user has gone
                self._trainers.leave(route)
            raise

    def _join(self, client_id: str, route: bytes, key: str) -> None:
        known = self._trainers.name(route)
        if known is not None and known != client_id:
            raise RemoteProtocolError(f"this connection is {known!r} already", "client_id")
        before = self._trainers.join(client_id, route, key)
        if before is not None:
            self._trainers.send(before, encode(Replaced(client_id)))

    def _unknown(self, route: bytes, message: Any) -> None:
        why = "say hello first"
        if isinstance(message, Submit):
            self._trainers.send(route, encode(Refusal(message.submit_id, "hello_first", why)))
        else:
            self._trainers.send(route, encode(Problem("hello_first", "", why)))

    def _from_node(self, frames: list[Any], now: float, key: str) -> None:
        route = frames[0]
        message, body = self._from_nodes.decode(frames[1:])
        if self._access is not None:
            self._access.gate.node(key, route, message)
        if isinstance(message, NodeHello | Answered | Announced):
            self._from_other(route, message, body, now)
            return
        if isinstance(message, StatusRequest):
            told = self._status_frames(message.request_id, message.rollout_id, now)
            self._workers.send(route, told)
            return
        if isinstance(message, Pins):
            over = self._ledger.unpinned(message.host, message.rollouts)
            self._workers.send(route, encode(Unpinned(self._broker_id, over)))
            return
        worker_id = message.worker_id
        if worker_id.encode() != route:
            raise RemoteProtocolError("is not this connection's routing id", "worker_id")
        if isinstance(message, WorkerHello):
            self._expect_node(message)
            log.info("worker", worker_id=worker_id, stage=message.stage, held=len(message.held))
        self._shell.take(self._ledger.handle(FromWorker(message), now))

    def _from_other(
        self, route: bytes, message: NodeHello | Answered | Announced, body: list[Any], now: float
    ) -> None:
        """Take what nodes say that are no workers; what is not a hello is passed on unread."""
        match message:
            case NodeHello():
                self._expect_node(message)
                self._others.heard(message, route, now)
                if message.role == "launcher":
                    reply = self._applying.reply(message, self._broker_id, self._heard)
                    self._workers.send(route, encode(*reply))
                if message.role == "router" and POLICY in message.figures:
                    self._new_policy(int(message.figures[POLICY]), now)
            case Answered(client_id, request_id, code, why, buffers):
                answer = NodeAnswer(request_id, code, why, buffers)
                self._trainers.send_name(client_id, encode(answer, body))
            case Announced():
                self._publish(message)
                if message.name == POLICY:
                    self._new_policy(message.value, now)

    def _new_policy(self, version: int, now: float) -> None:
        self._shell.take(self._ledger.handle(NewPolicy(version), now))

    def _ask(
        self, client_id: str, peer: Peer | None, message: AskNode, body: list[Any], now: float
    ) -> None:
        if message.role == "broker":
            if peer is not None and peer.role != "operator":
                raise Denied(f"the key of {peer} may not apply: an operator's may")
            answer, text = self._applying.ask(message, body)
            self._trainers.send_name(client_id, encode(answer, text))
            return
        role: AskerRole = "" if peer is None or peer.role == "host" else peer.role
        asked = encode(Asked(client_id, message.request_id, message.buffers, role), body)
        for route in self._others.routes(message.role, now):
            if send(self._sockets.control, [route, *asked], self._message_bytes):
                return
        why = f"no {message.role} is heard"
        self._trainers.send_name(client_id, encode(NodeAnswer(message.request_id, "no_node", why)))

    def _heard(self) -> tuple[Part, ...]:
        workers = (Part(node, "worker", {}) for node in self._ledger.worker_nodes())
        return (*workers, *self._others.heard_of())

    def _expect_node(self, message: NodeHello | WorkerHello) -> None:
        """Refuse names that are not ours: a worker's id names a socket's file."""
        if isinstance(message, NodeHello):
            if message.node not in self._known and not self._others.takes(message):
                raise RemoteProtocolError(f"{message.node!r} is not in this topology", "node")
            return
        if not self._applying.topology.may_be(message.node, message.stage, message.host):
            why = f"{message.node!r} is no worker of {message.stage!r} on {message.host!r}"
            raise RemoteProtocolError(f"{why} in this topology", "node")
        if not re.fullmatch(f"{re.escape(message.node)}-[0-9a-f]{{12}}", message.worker_id):
            raise RemoteProtocolError("is not a node's name and a boot id", "worker_id")

    def _result(self, frames: list[Any], now: float, key: str) -> None:
        message, body = self._results.decode(frames)
        if self._access is not None:
            self._access.gate.result(key, message)
        event = FromWorker(message, size_bytes(body))
        instructions = self._ledger.handle(event, now, place=False)
        self._shell.take(instructions, message.buffers, body)

    def _tick(self) -> None:
        now = time.monotonic()
        if not self._journal.full:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
        if self._access is not None:
            self._revoke(self._access, now)
        self._shell.take(self._ledger.handle(Tick(self._stood_still(now)), now))
        while self._trainers.gone:
            client_id, why = self._trainers.gone.popitem()
            log.warning("trainer let go", client_id=client_id, why=why)
            self._shell.take(self._ledger.handle(TrainerGone(client_id), now))
        self._publish_boot()

    def _revoke(self, access: Access, now: float) -> None:
        """Let go of what was let in by keys that are revoked."""
        self._sockets.events.turn()
        gone = access.gatekeeper.follow(now)
        if not gone:
            return
        told = encode(Problem("access", "", "the key of this connection is revoked"))
        for route in self._trainers.let_go(gone, "its key was revoked"):
            self._trainers.send(route, told)
        lost_hosts = access.gatekeeper.allowed.hosts_without_key(gone.values())
        for worker_id in self._pipes.workers():
            host = access.gate.host_of(worker_id.rpartition("-")[0])
            if host in lost_hosts:
                lost = WorkerLost(worker_id, "-", "Revoked", "the key of its host was revoked")
                self._shell.take(self._ledger.handle(FromWorker(lost), now))
            elif any(peer.role == "host" and peer.name == host for peer in gone.values()):
                self._pipes.close(worker_id)
                self._shell.take(self._ledger.handle(PipeClosed(worker_id), now))
        self._sockets.events.reopen()

    def _stood_still(self, now: float) -> bool:
        """Whether this loop, or the journal that its instructions wait for, stands still."""
        before, durable = self._ticked
        stuck = self._shell.waiting > 0 and self._journal.durable == durable
        self._ticked = (now, self._journal.durable)
        return stuck or now - before > LATE_TICKS * self._tick_s

    def _publish_boot(self) -> None:
        self._publish(Boot(self._broker_id))

    def _publish(self, message: Boot | Announced) -> None:
        if not self._sockets.events.publish(encode(message)):
            self.counts["events_dropped"] += 1

    def _flush(self) -> bool:
        return any((self._trainers.flush(), self._pipes.flush()))

    def _full_s(self, now: float) -> float:
        return round(now - self._full_since, 3) if self._full_since is not None else 0.0

    def _status_frames(self, request_id: str, rollout_id: str, now: float) -> list[Any]:
        buffer, text = json_buffer("status", self._status(now, rollout_id))
        return encode(Status(request_id, (buffer,)), [text])

    def _status(self, now: float, rollout_id: str) -> dict[str, Any]:
        shell = {"waiting_for_disk": self._shell.waiting, **self._shell.counts, **self.counts}
        return {
            **self._ledger.status(now, rollout_id),
            "nodes": self._others.status(now),
            **self._applying.figures(),
            "journal": {**self._journal.statistics(), "full_s": self._full_s(now)},
            "loop": {**shell, "lag_s": round(self._lag.worst_s, 4)},
            "bounds_s": BOUNDS_S,
            "dispatch_wait": self._shell.dispatch_wait.report(),
            "commit": self._journal.commits.report(),
            "security": self._access.gatekeeper.figures() if self._access else {},
            **self._figures(),
        }


def _known(topology: Topology) -> frozenset[str]:
    return frozenset(node.name for node in topology.nodes())
