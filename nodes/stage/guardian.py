"""The worker's bus side: hello, heartbeats, leases and cancels, and the life of the host.

It runs no handler code and never waits for the host, so nothing that a handler does delays a
heartbeat. Its own loop is poll and drain. It kills the host's process group, by its recorded id,
when an attempt is not over `cancel_grace_s` after its deadline or its cancel.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import zmq

from engine.errors import RemoteProtocolError
from engine.logs import get_logger
from engine.messages import (
    EVENTS,
    TO_NODE,
    Boot,
    Heartbeat,
    HeartbeatReply,
    Held,
    HelloAgain,
    Problem,
    Stop,
    WorkerCredit,
    WorkerGoodbye,
    WorkerHello,
    WorkerLost,
    WorkerWelcome,
)
from engine.process import child_environment
from engine.security import Line, node_key
from engine.sockets import Bounds, Outbox, boot_id, drain, open_socket
from engine.topology import Topology
from engine.wire import Codec, encode

from .pipe import TO_GUARDIAN, AreYouThere, Connect, Drop, Here, PipeEnd, Reread, batches
from .table import SPARE, Entry, SlotTable, shared_memory

log = get_logger()
LOOK_S = 0.1  # between two looks for handlers past their deadline
STALLED_S = 1.0  # a loop that has not answered for this long stands still
SILENT_LEASES = 2  # without a word of the broker, before the connection is made anew
LAST_WORDS_S = 2.0  # how long the broker may take to hear that a host is gone
KILL_WAIT_S = 5.0


@dataclass(slots=True)
class Stay:
    """One host process and its name on the bus, from start to end."""

    worker_id: str
    process: subprocess.Popen[bytes]
    pipe: PipeEnd
    control: zmq.Socket[bytes]
    outbox: Outbox
    line: Line
    stopping: dict[Held, float] = field(default_factory=dict)  # killed if still running then
    ready: bool = False  # its loop has answered once
    told_drain: bool = False
    broker_id: str = ""
    said_hello_at: float = 0.0
    heard_at: float = 0.0
    asked_at: float | None = None
    looked_at: float = 0.0
    loop_s: float = 0.0  # what the loop's last answer took
    nonce: int = 0

    def lag_s(self, now: float) -> float:
        """Return how long the host's loop has not answered."""
        return 0.0 if self.asked_at is None else now - self.asked_at


class Guardian:
    """Keeps one host on the bus until told to drain."""

    def __init__(self, topology: Topology, node: str) -> None:
        self._topology = topology
        self._node = topology.node(node)
        self._stage = topology.stage(self._node.spec)
        self._times = topology.timeouts
        self._bounds = Bounds(topology.limits.queue_messages, topology.limits.message_bytes)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._events = open_socket(self._context, zmq.SUB, self._bounds)
        self._events.setsockopt(zmq.SUBSCRIBE, b"")
        self._key = node_key(topology, self._node.host)
        self._hints = Line(self._events, topology.endpoint("events"), self._key)
        self._to_node: Codec[Any] = Codec(TO_NODE)
        self._event: Codec[Any] = Codec(EVENTS)
        self._memory = shared_memory(SPARE * self._stage.slots)
        self._table = SlotTable(self._memory, SPARE * self._stage.slots)
        self._stay: Stay | None = None
        self._wanted: Topology | None = None  # what was read again and is not gone by yet
        self._draining_until: float | None = None
        self._beat_at = 0.0
        self._restarts = 0

    def drain(self) -> None:
        """Take nothing more, finish what is held within drain_s, then leave."""
        self._draining_until = time.monotonic() + self._times.drain_s

    def reread(self, topology: Topology) -> None:
        """Go by another text of the topology from the next turn on; safe in a signal's handler."""
        self._wanted = topology

    def run(self) -> None:
        """Serve until drained."""
        try:
            while True:
                stay = self._stay = self._start()
                if self._serve(stay):
                    self._leave(stay)
                    return
                self._restarts += 1
        finally:
            if self._stay is not None:
                _kill(self._stay.process)
                self._stay.line.close()
            self._hints.close()
            self._context.destroy(linger=500)

    def _start(self) -> Stay:
        worker_id = boot_id(self._node.name)
        self._table.wipe()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "nodes.stage.host"),
                    *("--topology", str(self._topology.path), "--name", self._node.name),
                    *("--worker-id", worker_id),
                    *("--pipe", str(theirs.fileno()), "--table", str(self._memory)),
                ],
                pass_fds=(theirs.fileno(), self._memory),
                start_new_session=True,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
            )
        control = open_socket(self._context, zmq.DEALER, self._bounds, worker_id)
        line = Line(control, self._topology.endpoint("control"), self._key)
        outbox = Outbox(control, self._bounds)
        return Stay(worker_id, process, PipeEnd(ours, TO_GUARDIAN), control, outbox, line)

    def _serve(self, stay: Stay) -> bool:
        poller = zmq.Poller()
        for readable in (stay.control, self._events, stay.pipe.socket):
            poller.register(readable, zmq.POLLIN)
        drained = False
        while not drained:
            now = time.monotonic()
            self._take_over(stay, now)
            self._look(stay, now)
            self._beat(stay, now)
            if self._is_lost(stay, now):
                return False
            drained = self._is_drained(stay, now)
            stay.pipe.flush()
            stay.outbox.flush()
            poller.poll(min(100, int(self._times.heartbeat_s * 250)))
            self._from_broker(stay)
            self._from_events(stay)
            self._from_host(stay)
        return True

    def _take_over(self, stay: Stay, now: float) -> None:
        """Go by a topology that was read again: say hello with the credit that it gives."""
        if self._wanted is None:
            return
        self._topology, self._wanted = self._wanted, None
        self._stage = self._topology.stage(self._node.spec)
        self._times = self._topology.timeouts
        stay.pipe.send(Reread())
        if stay.broker_id:  # repeated until the broker welcomes it
            stay.broker_id = ""
            self._hello(stay, now)

    def _beat(self, stay: Stay, now: float) -> None:
        if now < self._beat_at:
            return
        self._beat_at = now + self._times.heartbeat_s
        if stay.asked_at is None:
            stay.asked_at = now
            stay.nonce += 1
            stay.pipe.send(AreYouThere(stay.nonce))
        if not stay.broker_id:
            self._hello(stay, now)
        elif not stay.outbox:
            stay.outbox.send(encode(self._heartbeat(stay, now)))

    def _heartbeat(self, stay: Stay, now: float) -> Heartbeat:
        lag_s = stay.lag_s(now)
        if lag_s <= STALLED_S:
            return Heartbeat(stay.worker_id, self._held(), 0.0, max(lag_s, stay.loop_s))
        culprit = self._table.culprit()
        return Heartbeat(stay.worker_id, self._held(), lag_s, lag_s, culprit)

    def _look(self, stay: Stay, now: float) -> None:
        """Notice that the broker does not take our key; it is tried again."""
        if stay.ready and now - stay.heard_at > SILENT_LEASES * self._times.lease_s:
            stay.heard_at = now
            stay.line.again(now)
        for line in (stay.line, self._hints):
            seen = line.look(now)
            if seen.refused:
                log.error("refused by the broker", error=seen.refused)

    def _hello(self, stay: Stay, now: float) -> None:
        if not stay.ready:
            return
        stay.said_hello_at = now
        slots = 0 if self._draining_until else self._stage.slots
        hello = WorkerHello(
            stay.worker_id,
            self._node.name,
            self._node.host,
            self._stage.name,
            slots,
            self._stage.memory_bytes,
            self._held(),
        )
        if not stay.outbox:
            stay.outbox.send(encode(hello))

    def _from_broker(self, stay: Stay) -> None:
        for message in _messages(stay.control, self._to_node):
            stay.heard_at = time.monotonic()
            match message:
                case WorkerWelcome(broker_id, work, drop):
                    self._welcomed(stay, broker_id, work)
                    self._drop(stay, drop)
                case HeartbeatReply(broker_id, drop):
                    self._drop(stay, drop)
                    if broker_id != stay.broker_id:
                        self._hello(stay, time.monotonic())
                case HelloAgain():
                    self._hello(stay, time.monotonic())
                case Problem(code, where, why):
                    log.error("the broker refused our message", field=where, error=why)
                    if code == "access":
                        stay.line.again(time.monotonic())

    def _welcomed(self, stay: Stay, broker_id: str, work: str) -> None:
        if broker_id != stay.broker_id:
            log.info("welcomed", broker_id=broker_id, worker_id=stay.worker_id)
        stay.broker_id = broker_id
        stay.pipe.send(Connect(broker_id, work))

    def _from_events(self, stay: Stay) -> None:
        for message in _messages(self._events, self._event):
            if isinstance(message, Stop):
                self._drop(stay, message.held)
            elif isinstance(message, Boot) and message.broker_id != stay.broker_id:
                now = time.monotonic()
                if now - stay.said_hello_at > self._times.heartbeat_s / 4:
                    self._hello(stay, now)

    def _held(self) -> tuple[Held, ...]:
        return tuple(entry.held for entry in self._table.entries())

    def _drop(self, stay: Stay, held: Iterable[Held]) -> None:
        until = time.monotonic() + self._times.cancel_grace_s
        fresh = set(held).difference(stay.stopping)  # a second cancel would cut cleaning up short
        stay.stopping.update(dict.fromkeys(fresh.intersection(self._held()), until))
        for part in batches(sorted(fresh)):  # what is not held may be on its way
            stay.pipe.send(Drop(part))

    def _from_host(self, stay: Stay) -> None:
        now = time.monotonic()
        for record in stay.pipe.receive():
            if isinstance(record, Here) and record.nonce == stay.nonce:
                stay.loop_s = stay.lag_s(now)
                stay.asked_at = None
                self._is_ready(stay, now)

    def _is_ready(self, stay: Stay, now: float) -> None:
        if not stay.ready:
            stay.ready = True
            stay.heard_at = now
            self._hello(stay, now)

    def _is_lost(self, stay: Stay, now: float) -> bool:
        late = self._late(stay, now)
        if late:
            stalled = stay.lag_s(now) > STALLED_S
            culprit = (self._table.culprit() if stalled else "") or late[0]
            _dump_stacks(stay.process)
            why = "its handler was not over in time and did not let itself be stopped"
            self._end(stay, "Blocked", culprit, why)
            return True
        if stay.process.poll() is None and not stay.pipe.closed:
            return False
        _kill(stay.process)
        why = f"the process that ran its handler ended with status {stay.process.returncode}"
        self._end(stay, "Died", self._table.culprit(), why)
        self._wait_before_restart()
        return True

    def _late(self, stay: Stay, now: float) -> list[str]:
        if now < stay.looked_at + LOOK_S:
            return []
        stay.looked_at = now
        if not stay.stopping and not self._table.is_any_due(now - self._times.cancel_grace_s):
            return []
        running = [entry for entry in self._table.entries() if entry.running]
        stay.stopping = {e.held: stay.stopping[e.held] for e in running if e.held in stay.stopping}
        return [entry.held[0] for entry in running if self._is_over(stay, entry, now)]

    def _is_over(self, stay: Stay, entry: Entry, now: float) -> bool:
        end = entry.deadline + self._times.cancel_grace_s
        return now > min(end, stay.stopping.get(entry.held, end))

    def _end(self, stay: Stay, error: str, culprit: str, why: str) -> None:
        log.error("host lost", error=error, culprit=culprit, why=why, held=len(self._held()))
        _kill(stay.process)
        stay.pipe.socket.close()
        lost = WorkerLost(stay.worker_id, culprit, error, why)
        stay.outbox.send(encode(lost))
        self._await_answer(stay)
        stay.line.close()
        stay.control.close(linger=500)

    def _await_answer(self, stay: Stay) -> None:
        deadline = time.monotonic() + LAST_WORDS_S
        while time.monotonic() < deadline:
            stay.outbox.flush()
            if stay.control.poll(50):
                for frames in drain(stay.control, 256):
                    if b"heartbeat_reply" in frames[0] or b"hello_again" in frames[0]:
                        return

    def _wait_before_restart(self) -> None:
        delay_s = min(2.0, 0.05 * 2 ** min(self._restarts, 6))
        deadline = time.monotonic() + delay_s
        while time.monotonic() < deadline and not self._draining_until:
            time.sleep(0.02)

    def _is_drained(self, stay: Stay, now: float) -> bool:
        if self._draining_until is None:
            return False
        if stay.broker_id and not stay.told_drain:
            stay.told_drain = True
            stay.outbox.send(encode(WorkerCredit(stay.worker_id, 0, 0)))
        return not self._held() or now > self._draining_until

    def _leave(self, stay: Stay) -> None:
        stay.outbox.send(encode(WorkerGoodbye(stay.worker_id)))
        stay.outbox.flush()
        log.info("drained", held=len(self._held()))


def _messages(source: zmq.Socket[bytes], codec: Codec[Any]) -> Iterator[Any]:
    for frames in drain(source, 256):
        try:
            yield codec.decode(frames)[0]
        except RemoteProtocolError as wrong:
            log.warning("message refused", field=wrong.field, error=str(wrong))


def _dump_stacks(process: subprocess.Popen[bytes]) -> None:
    """Let the host write every thread's stack into the node's log before it is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        log.debug("host is gone already", pid=process.pid)
    process.wait(KILL_WAIT_S)
