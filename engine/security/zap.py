"""The thread that ZeroMQ asks about every handshake (ZAP, RFC 27), by the allow-list.

Job: answer for the binding sockets of one context, follow the list's file, and count who was
refused: by ZAP, and before it, such as a peer without a key or one that does not speak ZMTP.
Does not know: messages.
Invariants: a request that does not parse is refused; the thread ends only with `close`. Without an
answer no handshake ends well, because binding sockets ask for it. A list that cannot be read
changes nothing: the one before stays, with an error in the log.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from ..errors import KeysError
from ..logs import get_logger
from .allowed import Peer, decide, revoked
from .curve import LIST_NAME
from .files import KeyStore

ENDPOINT = "inproc://zeromq.zap.01"
POLL_MS = 100
FOLLOW_S = 0.5  # between two looks at the list's file
MOST_REASONS = 64  # a counter's names come from peers' domains and roles: few
WATCHED = int(zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_MONITOR_STOPPED)
UNREADABLE = "allow-list not read: the one before stays"
log = get_logger()


@dataclass(frozen=True, slots=True)
class Request:
    """What ZeroMQ asks: may this key enter this domain? `route` leads the answer back."""

    route: tuple[bytes, ...]
    number: bytes
    domain: str
    address: str
    mechanism: str
    key: str

    def answer(self, *, allowed: bool, why: str) -> list[bytes]:
        """Return the frames of the answer; a peer that may enter is named by its key."""
        status = (b"200", b"") if allowed else (b"400", why.encode())
        user = self.key.encode() if allowed else b""
        return [*self.route, b"1.0", self.number, *status, user, b""]


def read_request(frames: Sequence[bytes]) -> Request | None:
    """Return a request, or None if it cannot be answered. A key of a wrong form is empty."""
    try:
        middle = list(frames).index(b"") + 1
        version, number, domain, address, _, mechanism, *credentials = frames[middle:]
    except ValueError:
        return None
    if version != b"1.0":
        return None
    key = ""
    if mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32:
        key = z85.encode(credentials[0]).decode()
    return Request(
        tuple(frames[:middle]),
        number,
        domain.decode("utf-8", "replace"),
        address.decode("utf-8", "replace"),
        mechanism.decode("utf-8", "replace"),
        key,
    )


class Gatekeeper:
    """Answers ZAP for one context from when it is made until `close`.

    Raises: KeysError if the allow-list cannot be read.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", store: KeyStore) -> None:
        self._store = store
        self._version = (
            self._stamp()
        )  # before the list: a change meanwhile is found by the next look
        self.allowed = store.allowed()
        self._followed = self.allowed
        self._reading = Lock()  # the thread reads it, too, before it refuses a key
        self._follow_at = 0.0
        self._unreadable = ""
        self._refused: Counter[str] = Counter()
        self._handshakes: Counter[str] = Counter()
        self._fresh: SimpleQueue[tuple[str, zmq.Socket[bytes]]] = SimpleQueue()
        self._monitors: dict[zmq.Socket[bytes], str] = {}
        self._over = Event()
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ENDPOINT)
        self._thread = Thread(target=self._run, name="zap", daemon=True)
        self._thread.start()

    def watch(self, socket: "zmq.Socket[bytes]", edge: str) -> None:
        """Count the handshakes of a binding socket; call it before `bind`."""
        self._fresh.put((edge, socket.get_monitor_socket(WATCHED)))

    def follow(self, now: float) -> dict[str, Peer]:
        """Read the list again if its file has changed; return the keys that it lacks now."""
        if now < self._follow_at:
            return {}
        self._follow_at = now + FOLLOW_S
        self._read_again()
        before, self._followed = self._followed, self.allowed
        gone = revoked(before, self._followed)
        if gone:
            log.info("keys revoked", keys=len(gone))
        return gone

    def _read_again(self) -> bool:
        """Read the list if its file has changed; return whether there is another one now."""
        with self._reading:
            version = self._stamp()
            if version == self._version:
                return False
            self._version = version
            try:
                self.allowed = self._store.allowed()
            except KeysError as wrong:
                self._unreadable = str(wrong)
                log.error(UNREADABLE, error=self._unreadable)  # noqa: TRY400 - the file is at fault
                return False
            self._unreadable = ""
            log.info("allow-list read", keys=len(self.allowed.keys))
            return True

    def figures(self) -> dict[str, Any]:
        """Return what was counted: refusals by edge and reason, and unfinished handshakes."""
        unfinished = {
            edge: count - self._handshakes[f"{edge} done"]
            for key, count in list(self._handshakes.items())
            if (edge := key.removesuffix(" begun")) != key
        }
        return {
            "refused": dict(self._refused),
            "no_handshake": {edge: count for edge, count in unfinished.items() if count > 0},
            "unreadable": self._unreadable,
        }

    def close(self) -> None:
        """Answer no more. Call it before the context is destroyed."""
        self._over.set()
        self._thread.join(5.0)

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = (self._store.directory / LIST_NAME).stat()
        except OSError:
            return ()
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        while not self._over.is_set():
            while not self._fresh.empty():
                edge, monitor = self._fresh.get()
                self._monitors[monitor] = edge
                poller.register(monitor, zmq.POLLIN)
            for ready, _ in poller.poll(POLL_MS):
                if ready is self._socket:
                    self._serve()
                elif not self._count(ready):
                    poller.unregister(ready)
        for monitor in list(self._monitors):
            monitor.close(linger=0)
        self._socket.close()

    def _serve(self) -> None:
        request = read_request(self._socket.recv_multipart())
        if request is None:
            log.error("a handshake's question does not parse; it is not answered")
            return
        asked = (request.domain, request.mechanism, request.key)
        enters, why = decide(self.allowed, *asked)
        if not enters and self._read_again():
            enters, why = decide(self.allowed, *asked)
        if not enters:
            self._refuse(request, why)
        self._socket.send_multipart(request.answer(allowed=enters, why=why))

    def _refuse(self, request: Request, why: str) -> None:
        name = f"{request.domain.partition(':')[0]}: {why}"
        if name in self._refused or len(self._refused) < MOST_REASONS:
            self._refused[name] += 1
        if self._refused[name].bit_count() == 1:  # the 1st, 2nd, 4th, ...: a storm fills no disk
            log.warning(
                "handshake refused",
                edge=request.domain,
                why=why,
                peer=request.address,
                count=self._refused[name],
            )

    def _count(self, monitor: "zmq.Socket[bytes]") -> bool:
        """Count what a monitor tells; return whether its socket is still open."""
        found = recv_monitor_message(monitor)
        match int(found["event"]):
            case zmq.EVENT_ACCEPTED:
                self._handshakes[f"{self._monitors[monitor]} begun"] += 1
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._handshakes[f"{self._monitors[monitor]} done"] += 1
            case zmq.EVENT_MONITOR_STOPPED:
                del self._monitors[monitor]
                monitor.close(linger=0)
                return False
        return True
