"""A connection to one endpoint whose key may change, or be refused.

Job: connect a socket; notice that the other side refuses it, which ZeroMQ tells nobody; connect it
anew, after a while, under the key that its file then has.
Does not know: messages, or what a refusal means to who uses the socket.
Invariants: over IPC it connects and does nothing more. Between a disconnect and the next connect is
a pause, in which the other side forgets the socket's routing id: a second peer with an id in use
would be ignored without a word. A side that is slower is found out by its silence (`again`), or the
next id is a fresh one. What waited in the socket is lost; `look` tells of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..errors import KeysError
from .curve import OwnKey

FAILED = int(
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
WATCHED = int(FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
MECHANISM_MISMATCH = 0x11000002
CUT_OFF = 3  # handshakes in a row that end without a reason: a restart of the other side is one
AT_ONCE_S = 3.0  # who will not take us ends handshakes at once; a busy machine lets them run out
LOOK_S = 0.5  # between two looks at the key's file
PAUSE_S = 0.5
MOST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look has found: why the other side refuses us, or that we connect anew."""

    refused: str = ""
    anew: bool = False


NOTHING = Seen()


class Line:
    """A socket and the endpoint that it is connected to; `look` often, `close` at the end."""

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        endpoint: str,
        key: OwnKey | None,
        fresh_id: Callable[[], str] | None = None,
    ) -> None:
        """Connect; with `fresh_id`, each later connection has another routing id.

        Raises: KeysError if the key cannot be read.
        """
        self._socket = socket
        self._fresh_id = fresh_id
        self._endpoint = endpoint
        self._key = key
        self._monitor: zmq.Socket[bytes] | None = None
        self._cut_off = 0
        self._failed_at = 0.0
        self._told = ""
        self._pause_s = PAUSE_S
        self._connect_at: float | None = None
        self._look_at = 0.0
        self._version: tuple[int, ...] = key.version() if key else ()
        if key is not None:
            key.apply(socket)
        if endpoint.startswith("tcp:"):
            self._monitor = socket.get_monitor_socket(WATCHED)
        socket.connect(endpoint)

    def look(self, now: float) -> Seen:
        """Return what has happened since the last look; `now` is in seconds.

        A refusal is told once, and again only for another reason. Then, or when the key's file was
        replaced, the socket is disconnected and, after a pause, connected anew.
        """
        if self._monitor is None:
            return NOTHING
        why = self._refusal(now)
        if why and self.follow(now):
            return NOTHING
        if why:
            self._disconnect(now + self._pause_s)
            self._pause_s = min(MOST_PAUSE_S, 2 * self._pause_s)
            if why != self._told:
                self._told = why
                return Seen(why)
        if self._connect_at is not None:
            return self._connect(now)
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self.follow(now)
        return NOTHING

    def follow(self, now: float) -> bool:
        """Return whether our key has a successor by now, under which the socket connects anew."""
        version = self._key.version() if self._key else ()
        if version and version != self._version:
            self._version = version
            self._disconnect(now + PAUSE_S)
        return self._connect_at is not None

    def again(self, now: float) -> None:
        """Connect anew over TCP: a message said that our key is not allowed, or nobody is heard."""
        if self._monitor is not None and self._connect_at is None:
            self._disconnect(now + self._pause_s)
            self._pause_s = min(MOST_PAUSE_S, 2 * self._pause_s)

    def close(self) -> None:
        """Watch no more; the socket itself is closed by who made it."""
        if self._monitor is not None:
            if not self._socket.closed:
                self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None

    def _refusal(self, now: float) -> str:
        why = ""
        assert self._monitor is not None
        while self._monitor.poll(0):
            found = recv_monitor_message(self._monitor)
            event = int(found["event"])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._cut_off, self._told, self._pause_s, why = 0, "", PAUSE_S, ""
            else:
                if now - self._failed_at > AT_ONCE_S:
                    self._cut_off = 0
                self._failed_at = now
                why = self._reason(event, int(found["value"])) or why
        return why

    def _reason(self, event: int, value: int) -> str:
        whose = f"our key ({self._key.peer})" if self._key else "a connection without a key"
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return (
                f"{self._endpoint} refuses {whose}: it is not on the allow-list there, or may not "
                "enter by this port; `rollmq keys list` shows the list"
            )
        if value == MECHANISM_MISMATCH and event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            other = "speaks without keys" if self._key else "asks for a key: give `keys`"
            return f"{self._endpoint} refuses {whose}: it {other}"
        self._cut_off += 1
        if self._cut_off < CUT_OFF:
            return ""
        if self._key is None:
            return f"{self._endpoint} refuses {whose}: it asks for a key: give `keys`"
        return (
            f"{self._endpoint} cannot read {whose}: its server key is not the one in "
            f"{self._key.directory}, or it is no rollmq"
        )

    def _disconnect(self, connect_at: float) -> None:
        self._cut_off = 0
        if self._connect_at is None:
            self._socket.disconnect(self._endpoint)
        self._connect_at = connect_at

    def _connect(self, now: float) -> Seen:
        if self._connect_at is None or now < self._connect_at:
            return NOTHING
        if self._key is not None:
            try:
                self._key.apply(self._socket)
            except KeysError as wrong:
                self._connect_at = now + self._pause_s
                told, self._told = self._told, str(wrong)
                return NOTHING if told == self._told else Seen(str(wrong))
            self._version = self._key.version()
        if self._fresh_id is not None:
            self._socket.setsockopt(zmq.IDENTITY, self._fresh_id().encode())
        self._connect_at = None
        self._socket.connect(self._endpoint)
        return Seen(anew=True)
