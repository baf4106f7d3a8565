"""The peers of one ROUTER socket: send to each without blocking, and notice who is gone.

Job: keep, for each peer, what its pipe would not take, in order.
Does not know: what the frames say.
Invariants: nothing overtakes what waits for the same peer; what waits for one peer is bounded by
the socket's own high-water mark once more, after which the peer counts as gone.
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import zmq

from engine.errors import RemoteProtocolError
from engine.sockets import Bounds, bind, drain, drain_known, open_socket, send

from .door import Door

DRAIN_MESSAGES = 256
ANY_SIZE = sys.maxsize  # what came within the bounds is passed on


class Peers:
    """A bound ROUTER socket and what waits for its peers."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        endpoint: str,
        bounds: Bounds,
        edge: str = "",
        door: Door | None = None,
    ) -> None:
        security = door.key(edge) if door else None
        self.socket = open_socket(context, zmq.ROUTER, bounds, security=security)
        self._door = door
        if door is not None:
            door.gatekeeper.watch(self.socket, edge)
        self.endpoint = bind(self.socket, endpoint, lasting=True)
        self._bounds = bounds
        self._waiting: dict[bytes, deque[Sequence[Any]]] = {}

    def receive(self) -> Iterator[tuple[bytes, list[Any], RemoteProtocolError | None]]:
        """Yield what has come: a peer, its frames, and why its key may not speak for it, if so."""
        if self._door is None:
            for peer, *frames in drain(self.socket, DRAIN_MESSAGES, copy=False):
                yield peer, frames, None
            return
        for key, (peer, *frames) in drain_known(self.socket, DRAIN_MESSAGES, copy=False):
            yield peer, frames, self._door.doubt(key, name(peer))

    def send(self, peer: str, frames: Sequence[Any]) -> bool:
        """Send now or keep it; return False if the peer is gone or has taken nothing for long."""
        identity = peer.encode("ascii", "surrogateescape")
        waiting = self._waiting.get(identity)
        if waiting is None:
            sent = send(self.socket, [identity, *frames], ANY_SIZE)
            if sent is False:
                self._waiting[identity] = deque([frames])
            return sent is not None
        waiting.append(frames)
        if len(waiting) <= self._bounds.queue_messages:
            return True
        del self._waiting[identity]
        return False

    def flush(self) -> None:
        """Send what waits, as far as the pipes take it; what is for peers that left is dropped."""
        for identity, waiting in list(self._waiting.items()):
            while waiting:
                sent = send(self.socket, [identity, *waiting[0]], ANY_SIZE)
                if sent is False:
                    break
                if sent is None:
                    waiting.clear()
                else:
                    waiting.popleft()
            if not waiting:
                del self._waiting[identity]

    def close(self, linger_ms: int) -> None:
        """Close the socket, giving the pipes so long to empty."""
        self.socket.close(linger=linger_ms)


def name(identity: bytes) -> str:
    """Return a routing id as text, whatever bytes it has."""
    return identity.decode("ascii", "surrogateescape")
