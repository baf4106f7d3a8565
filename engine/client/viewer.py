"""Looks at a broker without being its client: no hello, no window, nothing that the broker keeps.

Job: ask for status, again and again, over one socket.
Does not know: what the status says.
Invariants: every look has a deadline; after one that failed the next begins on a new socket, so a
broker that was away, or has moved, is found again. Any thread may look; they take turns.
"""

from pathlib import Path
from threading import Lock
from time import monotonic
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import zmq

from ..errors import BrokerUnreachable
from ..messages import TO_TRAINER, Status, StatusRequest
from ..sockets import drain, send
from ..wire import Codec, encode, read_buffer
from .front import Front

POLL_MS = 100  # between two looks whether the broker takes our key
ASK_AGAIN_S = 1.0  # a broker that restarts has lost the question


class Viewer:
    """A socket to the broker of a topology file, or at an endpoint, for status alone.

    key: the name of our key, as of a Client.

    Raises: TopologyError if the file is wrong; KeysError.
    """

    def __init__(self, where: str | Path, key: str | None = None) -> None:
        self._front = Front(where, key)
        self.endpoint, self._bounds = self._front.endpoint, self._front.bounds
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._codec: Codec[Any] = Codec(TO_TRAINER)
        self._socket: zmq.Socket[bytes] | None = None
        self._lock = Lock()

    def __enter__(self) -> Self:
        """Return the viewer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def look(self, timeout_s: float, rollout_id: str = "") -> dict[str, Any]:
        """Return the broker's status; with a rollout_id, that rollout under `rollout`, too.

        Raises: BrokerUnreachable if it does not answer within `timeout_s`; AccessRefused.
        """
        deadline = monotonic() + timeout_s
        with self._lock:
            socket = self._socket = self._socket or self._connected()
            while monotonic() < deadline:
                question = StatusRequest(uuid4().hex, rollout_id)
                send(socket, encode(question), self._bounds.message_bytes)
                again_at = min(deadline, monotonic() + ASK_AGAIN_S)
                while (left_s := again_at - monotonic()) > 0:
                    self._front.is_anew(monotonic())
                    socket.poll(min(int(left_s * 1000) + 1, POLL_MS))
                    report = self._answer(socket, question.request_id)
                    if report is not None:
                        return report
            self._drop()
        waited = f"waited {timeout_s:g} s for the broker's status from {self.endpoint}"
        raise BrokerUnreachable(waited)

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._drop()
            self._context.destroy(linger=0)

    def _connected(self) -> "zmq.Socket[bytes]":
        return self._front.connect(self._context, "viewer")

    def _drop(self) -> None:
        if self._socket is not None:
            self._front.close()
            self._socket.close(linger=0)
            self._socket = None

    def _answer(self, socket: "zmq.Socket[bytes]", request_id: str) -> dict[str, Any] | None:
        for frames in drain(socket, 16):
            message, body = self._codec.decode(frames)
            if isinstance(message, Status) and message.request_id == request_id:
                report: dict[str, Any] = read_buffer(message.buffers[0], body[0])
                return report
        return None
