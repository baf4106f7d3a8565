"""A backend's connection to the router, on an asyncio loop.

Job: hand over what the router asks for as it arrives, and send answers as soon as there is room.
Does not know: how a completion is made.
Invariants: the file descriptor is edge-triggered, so the socket's events are looked at again after
every receive and send; whoever beats calls `turn`, which also notices a router that fell silent.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from engine.topology import Topology

from .link import Offer, Request, RouterLink

Hand = Callable[[Request, list[Any]], None]


class AsyncRouterLink(RouterLink):
    """A RouterLink that calls `hand` with each request; make it inside the loop that uses it."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        topology: Topology,
        node: str,
        offer: Offer,
        hand: Hand,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._hand = hand
        self._again: asyncio.Handle | None = None
        super().__init__(context, topology, node, offer)

    def send(self, message: Any, body: Sequence[Any] = ()) -> None:
        """Send now, or as soon as the pipe has room."""
        super().send(message, body)
        self._soon()

    def turn(self) -> None:
        """Take what has come and send what waits."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for message, body in self.receive(time.monotonic()):
            self._hand(message, body)
        self.outbox.flush()
        events = int(self.socket.get(zmq.EVENTS))
        if events & zmq.POLLIN or (len(self.outbox) and events & zmq.POLLOUT):
            self._soon()

    def _connect(self) -> None:
        super()._connect()
        self._watched = self.socket.fileno()
        self._loop.add_reader(self._watched, self.turn)
        self._soon()

    def _disconnect(self, linger_ms: int = 0) -> None:
        self._loop.remove_reader(self._watched)
        super()._disconnect(linger_ms)

    def close(self) -> None:
        """Say goodbye and close."""
        super().close()
        if self._again is not None:
            self._again.cancel()

    def _soon(self) -> None:
        if self._again is None:
            self._again = self._loop.call_soon(self.turn)
