"""Who is connected to the broker, and what waits to be sent to each.

A trainer is known by its connection's routing id from its hello on; a newer hello with the same
client_id replaces the connection before. A worker's routing id is its worker_id. What a peer's pipe
does not take waits here, bounded: a peer that lets it overflow is let go, and what it was owed is
sent again when it says hello. This module knows no rule of the ledger.
"""

from collections.abc import Callable, Sequence
from typing import Any

import zmq

from engine.sockets import Bounds, Outbox, bind, open_socket, send

Socket = zmq.Socket[bytes]


class Connections:
    """The connections of one ROUTER socket, by the names that their peers gave."""

    def __init__(self, socket: Socket, bounds: Bounds) -> None:
        self._socket = socket
        self._bounds = bounds
        self._route: dict[str, bytes] = {}
        self._name: dict[bytes, str] = {}
        self._waiting: dict[bytes, list[Sequence[Any]]] = {}

    def name(self, route: bytes) -> str | None:
        """Return the name of a connection, if it has said hello."""
        return self._name.get(route)

    def join(self, name: str, route: bytes) -> bytes | None:
        """Bind a name to a connection; return the connection that had it before, if another."""
        before = self._route.get(name)
        if before is not None and before != route:
            self.leave(before)
        else:
            before = None
        self._route[name] = route
        self._name[route] = name
        return before

    def leave(self, route: bytes) -> str | None:
        """Forget a connection; return its name."""
        self._waiting.pop(route, None)
        name = self._name.pop(route, None)
        if name is not None and self._route.get(name) == route:
            del self._route[name]
        return name

    def send_name(self, name: str, frames: Sequence[Any]) -> str | None:
        """Send to a peer by name; return the name if the connection had to be let go."""
        route = self._route.get(name)
        return None if route is None else self.send(route, frames)

    def send(self, route: bytes, frames: Sequence[Any]) -> str | None:
        """Send to a connection, or keep the message; return its name if it had to be let go."""
        waiting = self._waiting.get(route)
        if waiting is None and self._try(route, frames):
            return None
        if route not in self._name:
            return None
        queue = self._waiting.setdefault(route, [])
        queue.append(frames)
        return self.leave(route) if len(queue) > self._bounds.queue_messages else None

    def flush(self) -> bool:
        """Send what waits, as far as pipes take it; return whether anything still waits."""
        for route, queue in list(self._waiting.items()):
            sent = 0
            while sent < len(queue) and self._try(route, queue[sent]):
                sent += 1
            del queue[:sent]
            if not queue:
                del self._waiting[route]
        return bool(self._waiting)

    def _try(self, route: bytes, frames: Sequence[Any]) -> bool:
        return send(self._socket, [route, *frames], self._bounds.message_bytes)


class WorkPipes:
    """One PUSH socket for each worker, bound by the broker: ZeroMQ never places work."""

    def __init__(
        self,
        context: zmq.Context[Socket],
        bounds: Bounds,
        endpoint: Callable[[str], str],
    ) -> None:
        self._context = context
        self._bounds = bounds
        self._endpoint = endpoint
        self._pipes: dict[str, tuple[Outbox, Socket, str]] = {}

    def open(self, worker_id: str) -> str:
        """Return the endpoint that carries a worker's work, bound at its first hello.

        Raises: NodeFailed if it cannot be bound.
        """
        found = self._pipes.get(worker_id)
        if found is None:
            socket = open_socket(self._context, zmq.PUSH, self._bounds)
            bound = bind(socket, self._endpoint(worker_id))
            found = self._pipes[worker_id] = (Outbox(socket, self._bounds), socket, bound)
        return found[2]

    def send(self, worker_id: str, frames: Sequence[Any]) -> None:
        """Send work, or keep it until the worker's pipe has room; unknown workers get nothing."""
        found = self._pipes.get(worker_id)
        if found is not None:
            found[0].send(frames)

    def flush(self) -> bool:
        """Send what waits; return whether anything still waits."""
        waiting = [pipe[0] for pipe in self._pipes.values() if pipe[0]]
        for outbox in waiting:
            outbox.flush()
        return any(map(len, waiting))

    def close(self, worker_id: str) -> None:
        """Let a worker's pipe go with what waits in it."""
        found = self._pipes.pop(worker_id, None)
        if found is not None:
            found[1].close()

    def close_all(self) -> None:
        """Let every pipe go."""
        for worker_id in list(self._pipes):
            self.close(worker_id)
