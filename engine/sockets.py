"""Sockets with every bound set, and the poll-and-drain habits that ZeroMQ needs.

All sockets are made here: finite high-water marks, a message limit, no lingering, no silent drops.
Sends never block: a full pipe leaves the message with the sender. Receives drain what is there.

`Outbox` keeps what a pipe would not take, in order.
`Pump` lets an asyncio loop drain a socket without one await a message (facts: `await recv()` is
fifteen times slower, and a cancelled one loses a message).

This module knows no message: frames in, frames out.
"""

import asyncio
import fcntl
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import zmq
from zmq.backend import Socket as _Plain

from .errors import LocalProtocolError, NodeFailed
from .security import ServerKey

LARGE_BYTES = 131_072  # from here on zero-copy sends pay (measured: not yet at 74 KB)
COPY_BYTES = 2_048  # below this a copy costs less than keeping a frame object
_NOBLOCK = int(zmq.NOBLOCK)  # plain ints: composing enum flags for each frame costs more than
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)  # sending it; send_multipart takes three times as long
_send_frame = _Plain.send  # what zmq.Socket.send calls, without looking at options we never use
_receive_frame = _Plain.recv
IPC = "ipc://"
_LOCKS: list[IO[bytes]] = []  # held until this process ends


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one socket may hold."""

    queue_messages: int = 1000
    message_bytes: int = 64 * 1024 * 1024


def boot_id(name: str) -> str:
    """Return a routing id that no process used before: nobody resumes a dead peer's identity."""
    return f"{name}-{uuid4().hex[:12]}"


def open_socket(
    context: "zmq.Context[zmq.Socket[bytes]]",
    kind: int,
    bounds: Bounds,
    identity: str = "",
    security: ServerKey | None = None,
) -> "zmq.Socket[bytes]":
    """Return a socket of `kind` with every bound set.

    security: of a socket that is to bind; one that connects gets its key from a `security.Line`.

    Raises: zmq.ZMQError if the context has no room for another socket.
    """
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, bounds.queue_messages)
    socket.setsockopt(zmq.RCVHWM, bounds.queue_messages)
    socket.setsockopt(zmq.MAXMSGSIZE, bounds.message_bytes)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    socket.setsockopt(zmq.ZAP_DOMAIN, b"rollmq")  # refuses ZMTP 1.0, for which noise is a peer
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    if identity:
        socket.setsockopt(zmq.IDENTITY, identity.encode())
    if security is not None:
        security.apply(socket)
    return socket


def bind(socket: "zmq.Socket[bytes]", endpoint: str, *, lasting: bool = False) -> str:
    """Bind and return the endpoint in full; an IPC socket's directory is private to its owner.

    `lasting` keeps the address for the life of this process: over IPC a second bind would steal it
    silently, so a lock is taken beside the socket's file.

    Raises: NodeFailed if the address is taken or its directory belongs to somebody else.
    """
    if endpoint.startswith(IPC):
        path = Path(endpoint.removeprefix(IPC))
        private_directory(path.parent)
        if lasting:
            _LOCKS.append(_lock(path.with_name(f"{path.name}.lock")))
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as wrong:
        raise NodeFailed(f"cannot bind {endpoint}: {wrong}") from None
    return socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def _lock(path: Path) -> IO[bytes]:
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise NodeFailed(f"{path.with_suffix('')} is bound by another process") from None
    return file


def private_directory(directory: Path) -> None:
    """Make a directory that only this user may enter; Linux asks no more of a socket's peer.

    Raises: NodeFailed if it belongs to somebody else.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_uid != os.getuid():
        raise NodeFailed(f"{directory} belongs to user {found.st_uid}, not to {os.getuid()}")
    if stat.S_IMODE(found.st_mode) & 0o077:
        directory.chmod(0o700)


def drain(socket: "zmq.Socket[bytes]", most: int, *, copy: bool = True) -> list[list[Any]]:
    """Receive up to `most` messages that are there now; without copy, body frames are zmq.Frame.

    Without copy, frames under COPY_BYTES are bytes all the same: headers and small bodies.
    """
    messages: list[list[Any]] = []
    receive = _receive if copy else _receive_uncopied
    while len(messages) < most:
        try:
            messages.append(receive(socket))
        except zmq.Again:
            break
    return messages


def drain_known(
    socket: "zmq.Socket[bytes]", most: int, *, copy: bool = True
) -> list[tuple[str, list[Any]]]:
    """Receive like `drain`, each message with the key that ZAP let its sender in by."""
    messages: list[tuple[str, list[Any]]] = []
    while len(messages) < most:
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            break
        user = _user(frames[-1])
        messages.append((user, [_plain(frame, place, copy) for place, frame in enumerate(frames)]))
    return messages


def _user(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:  # a routing id alone, or a peer that no ZAP was asked about
        return ""


def _plain(frame: zmq.Frame, place: int, copy: bool) -> Any:  # noqa: FBT001
    return frame.bytes if copy or place < 3 or len(frame) < COPY_BYTES else frame


def _receive(socket: "zmq.Socket[bytes]") -> list[Any]:
    frame: Any = _receive_frame(socket, _NOBLOCK, False)  # noqa: FBT003 - its fastest form
    frames = [frame.bytes]
    while frame.more:
        frame = _receive_frame(socket, _NOBLOCK, False)  # noqa: FBT003
        frames.append(frame.bytes)
    return frames


def _receive_uncopied(socket: "zmq.Socket[bytes]") -> list[Any]:
    frame: Any = _receive_frame(socket, _NOBLOCK, False)  # noqa: FBT003
    frames: list[Any] = [frame.bytes]
    while frame.more:
        frame = _receive_frame(socket, _NOBLOCK, False)  # noqa: FBT003
        small = len(frame) < COPY_BYTES or len(frames) < 2
        frames.append(frame.bytes if small else frame)
    return frames


def send(socket: "zmq.Socket[bytes]", frames: Sequence[Any], message_bytes: int) -> bool | None:
    """Send without blocking; return False if the pipe is full, None if there is no such peer.

    A frame that was received without copy is sent on without one.

    Raises: LocalProtocolError if a frame is over `message_bytes`: the peer would cut the link.
    """
    _expect_size(frames, message_bytes)
    last = len(frames) - 1
    try:
        for position, frame in enumerate(frames):
            copy = frame.__class__ is not zmq.Frame and len(frame) < LARGE_BYTES
            _send_frame(socket, frame, _MORE if position < last else _NOBLOCK, copy)
    except zmq.Again:
        return False
    except zmq.ZMQError as wrong:
        if wrong.errno == zmq.EHOSTUNREACH:
            return None
        raise
    return True


def _expect_size(frames: Sequence[Any], message_bytes: int) -> None:
    largest = max(map(len, frames))
    if largest > message_bytes:
        raise LocalProtocolError(f"a frame of {largest} bytes is over the limit of {message_bytes}")


class Outbox:
    """Messages that a pipe would not take yet, in order.

    Sending through it keeps the order: nothing overtakes what waits.
    """

    def __init__(self, socket: "zmq.Socket[bytes]", bounds: Bounds) -> None:
        self._socket = socket
        self._bounds = bounds
        self._waiting: deque[Sequence[Any]] = deque()

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._waiting)

    def send(self, frames: Sequence[Any]) -> None:
        """Send now, or keep the message until `flush` finds room."""
        if self._waiting or not send(self._socket, frames, self._bounds.message_bytes):
            self._waiting.append(frames)

    def put(self, frames: Sequence[Any]) -> None:
        """Keep a message for the next `flush`.

        Raises: LocalProtocolError if a frame is over the limit: the peer would cut the link.
        """
        _expect_size(frames, self._bounds.message_bytes)
        self._waiting.append(frames)

    def flush(self) -> None:
        """Send what waits, as far as the pipe takes it."""
        while self._waiting:
            frames = self._waiting[0]
            if not send(self._socket, frames, self._bounds.message_bytes):
                return
            self._waiting.popleft()


class Pump:
    """Drain a socket from an asyncio loop, and flush its outbox when there is room.

    `receive` is called on the loop with a batch of messages. The file descriptor is edge-triggered,
    so after every send or receive the socket's events are looked at again before waiting.
    """

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        receive: Callable[[Iterable[list[Any]]], None],
        bounds: Bounds,
        *,
        copy: bool = True,
        most: int = 128,
    ) -> None:
        self.socket = socket
        self.outbox = Outbox(socket, bounds)
        self._receive = receive
        self._copy = copy
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.Handle | None = None
        self._readable = socket.get(zmq.TYPE) not in {zmq.PUSH, zmq.PUB}
        self._loop.add_reader(socket.fileno(), self._turn)
        self._soon()

    def send(self, frames: Sequence[Any]) -> None:
        """Send at the end of this turn of the loop, or as soon as the pipe has room then.

        What one turn sends goes out together: waking ZeroMQ's own thread costs more than a message.
        """
        self.outbox.put(frames)
        self._soon()

    def close(self, linger_ms: int = 0) -> None:
        """Stop watching and close the socket; what waits in the outbox is dropped."""
        self._loop.remove_reader(self.socket.fileno())
        if self._again is not None:
            self._again.cancel()
        self.socket.close(linger=linger_ms)

    def _soon(self) -> None:
        if self._again is None:
            self._again = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self.outbox.flush()
        events = int(self.socket.get(zmq.EVENTS))
        if self._readable and events & zmq.POLLIN:
            self._receive(drain(self.socket, self._most, copy=self._copy))
            if not self.socket.closed:
                self._soon()
        elif self.outbox and events & zmq.POLLOUT:
            self._soon()
