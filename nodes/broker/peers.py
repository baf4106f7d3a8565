"""Who is connected to the broker, and what waits to be sent to each.

A trainer is known by its connection's routing id from its hello on; a newer hello with the same
client_id replaces the connection before. A worker's routing id is its worker_id, so it needs no
name. What a trainer's pipe does not take waits here, bounded: one that lets it overflow, or has
gone, is let go, and what it was owed is sent again when it says hello. What a worker's control pipe
does not take is dropped: each answer there is repeated with the next heartbeat. This module knows
no rule of the ledger.
"""

from collections.abc import Callable, Container, Sequence
from typing import Any

import zmq

from engine.security import ServerKey
from engine.sockets import Bounds, Outbox, bind, open_socket, send

Socket = zmq.Socket[bytes]


class Connections:
    """The connections of one ROUTER socket, by the names that their peers gave."""

    def __init__(self, socket: Socket, bounds: Bounds) -> None:
        self._socket = socket
        self._bounds = bounds
        self._route: dict[str, bytes] = {}
        self._name: dict[bytes, str] = {}
        self._key: dict[bytes, str] = {}  # under which a connection said hello
        self._waiting: dict[bytes, list[Sequence[Any]]] = {}
        self.gone: dict[str, str] = {}  # who was let go, and why; for the loop to take note of

    def name(self, route: bytes) -> str | None:
        """Return the name of a connection, if it has said hello."""
        return self._name.get(route)

    def key(self, route: bytes) -> str:
        """Return the key under which a connection said hello; empty if it did not, or has none."""
        return self._key.get(route, "")

    def let_go(self, keys: Container[str], why: str) -> list[bytes]:
        """Forget every connection under these keys; return their routing ids."""
        routes = [route for route, key in self._key.items() if key in keys]
        for route in routes:
            self._let_go(route, why)
        return routes

    def join(self, name: str, route: bytes, key: str = "") -> bytes | None:
        """Bind a name to a connection; return the connection that had it before, if another."""
        before = self._route.get(name)
        if before is not None and before != route:
            self.leave(before)
        else:
            before = None
        self._route[name] = route
        self._name[route] = name
        if key:
            self._key[route] = key
        self.gone.pop(name, None)
        return before

    def leave(self, route: bytes) -> None:
        """Forget a connection."""
        self._waiting.pop(route, None)
        self._key.pop(route, None)
        name = self._name.pop(route, None)
        if name is not None and self._route.get(name) == route:
            del self._route[name]

    def forget(self, name: str) -> None:
        """Forget a connection by the name of its peer, if there is one."""
        route = self._route.get(name)
        if route is not None:
            self.leave(route)

    def send_name(self, name: str, frames: Sequence[Any]) -> None:
        """Send to a peer by name; one that is not here gets nothing."""
        route = self._route.get(name)
        if route is not None:
            self.send(route, frames)

    def send(self, route: bytes, frames: Sequence[Any]) -> None:
        """Send to a connection; what a named one's pipe does not take is kept."""
        waiting = self._waiting.get(route)
        sent = self._try(route, frames) if waiting is None else False
        if sent is None:
            self._let_go(route, "it is gone")
        elif not sent and route in self._name:
            queue = self._waiting.setdefault(route, [])
            queue.append(frames)
            if len(queue) > self._bounds.queue_messages:
                self._let_go(route, "it does not read")

    def flush(self) -> bool:
        """Send what waits, as far as pipes take it; return whether anything still waits."""
        if not self._waiting:
            return False
        for route, queue in list(self._waiting.items()):
            sent, done = 0, self._try(route, queue[0])
            while done:
                sent += 1
                done = sent < len(queue) and self._try(route, queue[sent])
            del queue[:sent]
            if done is None:
                self._let_go(route, "it is gone")
            elif not queue:
                del self._waiting[route]
        return bool(self._waiting)

    def _let_go(self, route: bytes, why: str) -> None:
        name = self._name.get(route)
        if name is not None:
            self.gone[name] = why
        self.leave(route)

    def _try(self, route: bytes, frames: Sequence[Any]) -> bool | None:
        return send(self._socket, [route, *frames], self._bounds.message_bytes)


class WorkPipes:
    """One PUSH socket for each worker, bound by the broker: ZeroMQ never places work."""

    def __init__(
        self,
        context: zmq.Context[Socket],
        bounds: Bounds,
        endpoint: Callable[[str], str],
        key: Callable[[str], ServerKey | None],
    ) -> None:
        self._context = context
        self._bounds = bounds
        self._endpoint = endpoint
        self._key = key
        self._pipes: dict[str, tuple[Outbox, Socket, str]] = {}
        self._waiting: set[str] = set()

    def open(self, worker_id: str) -> str:
        """Return the endpoint that carries a worker's work, bound at its first hello.

        Raises: NodeFailed if it cannot be bound; KeysError.
        """
        found = self._pipes.get(worker_id)
        if found is None:
            security = self._key(worker_id)
            socket = open_socket(self._context, zmq.PUSH, self._bounds, security=security)
            bound = bind(socket, self._endpoint(worker_id))
            found = self._pipes[worker_id] = (Outbox(socket, self._bounds), socket, bound)
        return found[2]

    def send(self, worker_id: str, frames: Sequence[Any]) -> None:
        """Send work, or keep it until the worker's pipe has room; unknown workers get nothing."""
        found = self._pipes.get(worker_id)
        if found is not None:
            found[0].send(frames)
            if found[0]:
                self._waiting.add(worker_id)

    def flush(self) -> bool:
        """Send what waits; return whether anything still waits."""
        for worker_id in list(self._waiting):
            outbox = self._pipes[worker_id][0]
            outbox.flush()
            if not outbox:
                self._waiting.discard(worker_id)
        return bool(self._waiting)

    def close(self, worker_id: str) -> None:
        """Let a worker's pipe go with what waits in it."""
        self._waiting.discard(worker_id)
        found = self._pipes.pop(worker_id, None)
        if found is not None:
            found[1].close()

    def workers(self) -> list[str]:
        """Return the workers that have a pipe."""
        return list(self._pipes)

    def close_all(self) -> None:
        """Let every pipe go."""
        for worker_id in list(self._pipes):
            self.close(worker_id)
