"""The peers of one ROUTER socket: send to each without blocking, and notice who is gone.

Job: keep, for each peer, what its pipe would not take, in order.
Does not know: what the frames say.
Invariants: nothing overtakes what waits for the same peer; what waits for one peer is bounded by
the socket's own high-water mark once more, after which the peer counts as gone.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import zmq

from engine.sockets import LARGE_BYTES, Bounds, bind, open_socket


class Peers:
    """A bound ROUTER socket and what waits for its peers."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, bounds: Bounds
    ) -> None:
        self.socket = open_socket(context, zmq.ROUTER, bounds)
        self.endpoint = bind(self.socket, endpoint, lasting=True)
        self._bounds = bounds
        self._waiting: dict[bytes, deque[Sequence[Any]]] = {}

    def send(self, peer: str, frames: Sequence[Any]) -> bool:
        """Send now or keep it; return False if the peer is gone or has taken nothing for long."""
        identity = peer.encode("ascii", "surrogateescape")
        waiting = self._waiting.get(identity)
        if waiting is None:
            sent = self._send(identity, frames)
            if sent is None:
                self._waiting[identity] = deque([frames])
            return sent is not False
        waiting.append(frames)
        if len(waiting) <= self._bounds.queue_messages:
            return True
        del self._waiting[identity]
        return False

    def flush(self) -> None:
        """Send what waits, as far as the pipes take it; what is for peers that left is dropped."""
        for identity, waiting in list(self._waiting.items()):
            while waiting:
                sent = self._send(identity, waiting[0])
                if sent is None:
                    break
                if sent is False:
                    waiting.clear()
                else:
                    waiting.popleft()
            if not waiting:
                del self._waiting[identity]

    def close(self, linger_ms: int) -> None:
        """Close the socket, giving the pipes so long to empty."""
        self.socket.close(linger=linger_ms)

    def _send(self, identity: bytes, frames: Sequence[Any]) -> bool | None:
        copy = max(map(len, frames)) < LARGE_BYTES
        try:
            self.socket.send_multipart([identity, *frames], zmq.NOBLOCK, copy=copy)
        except zmq.Again:
            return None
        except zmq.ZMQError as wrong:
            if wrong.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True


def name(identity: bytes) -> str:
    """Return a routing id as text, whatever bytes it has."""
    return identity.decode("ascii", "surrogateescape")
