"""The way to the broker's front socket: endpoint, bounds, and the key that a client speaks under.

Job: find them in a topology, connect, and raise when the broker does not take the key.
Does not know: messages.
Invariants: over IPC, or with an endpoint instead of a topology, there is no key.
"""

from pathlib import Path
from typing import Any
from uuid import uuid4

import zmq

from ..errors import AccessRefused, KeysError
from ..messages import Problem
from ..security import Line, OwnKey, client_key
from ..sockets import Bounds, boot_id, open_socket
from ..topology import load
from .core import Core


class Front:
    """Where a client connects, and as whom.

    Raises: TopologyError if the file is wrong; KeysError if no key is there, or it cannot be read.
    """

    def __init__(self, where: str | Path, key: str | None) -> None:
        self.bounds = Bounds()
        self.endpoint = str(where)
        self._key: OwnKey | None = None
        self._line: Line | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        if "://" not in self.endpoint:
            topology = load(Path(where))
            limits = topology.limits
            self.endpoint = topology.endpoint("front")
            self.bounds = Bounds(limits.queue_messages, limits.message_bytes)
            self._key = client_key(topology, key)

    def client_id(self, given: str | None) -> str:
        """Return a client_id that the key may use, unless one is given."""
        kind = self._key.peer.name if self._key else "client"
        return given or f"{kind}-{uuid4().hex[:8]}"

    def connect(self, client_id: str) -> "zmq.Socket[bytes]":
        """Return a socket to the broker. Raises: KeysError."""
        self._context = zmq.Context()
        socket = open_socket(self._context, zmq.DEALER, self.bounds, boot_id(client_id[:60]))
        try:
            self._line = Line(socket, self.endpoint, self._key, lambda: boot_id(client_id[:60]))
        except KeysError:
            self._context.destroy(linger=0)
            raise
        return socket

    def turn(self, core: Core, now: float) -> None:
        """Let a core know the time, and whether it has to say hello on a connection made anew.

        Raises: AccessRefused if the broker does not take the key; BrokerUnreachable.
        """
        assert self._line is not None
        seen = self._line.look(now)
        if seen.refused:
            raise AccessRefused(seen.refused)
        if seen.anew:
            core.start(now)
        core.tick(now)

    def hear(self, core: Core, message: Any, body: list[Any], now: float) -> None:
        """Hand a message to a core, unless it refuses a key that has a successor by now.

        Raises: AccessRefused; and what `Core.receive` does.
        """
        assert self._line is not None
        refused = isinstance(message, Problem) and message.code == "access"
        if not (refused and self._line.follow(now)):
            core.receive(message, body, now)

    def destroy(self, linger_ms: int) -> None:
        """Close the socket and all that it was made with."""
        if self._line is not None:
            self._line.close()
        if self._context is not None:
            self._context.destroy(linger=linger_ms)
