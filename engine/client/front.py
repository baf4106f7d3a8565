"""The way to the broker's front socket: endpoint, bounds, and the key that a client speaks under.

Job: find them in a topology, connect, and raise when the broker does not take the key.
Does not know: messages.
Invariants: over IPC, or with an endpoint instead of a topology, there is no key.
"""

from pathlib import Path
from uuid import uuid4

import zmq

from ..errors import AccessRefused
from ..security import Line, OwnKey, client_key
from ..sockets import Bounds, boot_id, open_socket
from ..topology import load


class Front:
    """Where a client connects, and as whom.

    Raises: TopologyError if the file is wrong; KeysError if no key is there, or it cannot be read.
    """

    def __init__(self, where: str | Path, key: str | None) -> None:
        self.bounds = Bounds()
        self.endpoint = str(where)
        self._key: OwnKey | None = None
        self._line: Line | None = None
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

    def connect(
        self, context: "zmq.Context[zmq.Socket[bytes]]", client_id: str
    ) -> "zmq.Socket[bytes]":
        """Return a socket to the broker. Raises: KeysError."""
        socket = open_socket(context, zmq.DEALER, self.bounds, boot_id(client_id[:60]))
        self._line = Line(socket, self.endpoint, self._key)
        return socket

    def is_anew(self, now: float) -> bool:
        """Return whether the socket was connected anew just now: whoever uses it says hello again.

        Raises: AccessRefused if the broker does not take the key.
        """
        assert self._line is not None
        seen = self._line.look(now)
        if seen.refused:
            raise AccessRefused(seen.refused)
        return seen.anew

    def close(self) -> None:
        """Watch the connection no more, before its socket is closed."""
        if self._line is not None:
            self._line.close()
