"""The tie of a node that is not a worker to the broker: it says that it is there.

Job: repeat NodeHello with figures over one DEALER, hand over what clients ask, send answers, and
keep in `told` what the broker answers to a launcher, with the text of a topology.
Does not know: what the node does. A node works without a broker, so nothing here waits for one.
Invariants: one hello a heartbeat; a broker that is away costs nothing but a bounded queue: an
answer that does not fit is dropped, and its question comes again.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import zmq

from .errors import RemoteProtocolError
from .logs import get_logger
from .messages import (
    TO_NODE,
    Announced,
    Answered,
    Asked,
    LauncherReply,
    NodeHello,
    Part,
    Problem,
)
from .messages.trainer import Role
from .security import Line, node_key
from .sockets import Bounds, drain, open_socket, send
from .sockets import boot_id as fresh_boot_id
from .topology import Topology
from .wire import Codec, encode, read_json

PENDING = 64  # enough for a short absence of the broker; older hellos say nothing new
CODEC = Codec[Any](TO_NODE)


class Presence:
    """Say hello to the broker, again and again.

    host: where the node is, if the topology does not say.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        topology: Topology,
        node: str,
        boot_id: str,
        role: Role,
        host: str | None = None,
    ) -> None:
        bounds = Bounds(PENDING, topology.limits.message_bytes)
        self.socket = open_socket(context, zmq.DEALER, bounds, boot_id)
        here = host or topology.node(node).host
        key = node_key(topology, here)
        name = boot_id.rpartition("-")[0]
        self._line = Line(
            self.socket, topology.endpoint("control"), key, lambda: fresh_boot_id(name)
        )
        self._bounds = bounds
        self.told: deque[tuple[LauncherReply, str | None]] = deque(maxlen=PENDING)
        self._hello = (boot_id, node, role, here)
        self._every_s = topology.timeouts.heartbeat_s
        self._next_at = 0.0

    def beat(self, now: float, figures: dict[str, float], parts: tuple[Part, ...] = ()) -> None:
        """Say hello if it is time; `now` is in seconds. What clients ask is dropped."""
        self.asked()
        seen = self._line.look(now)
        if seen.refused:
            get_logger().error("refused by the broker", error=seen.refused)
        if now >= self._next_at:
            self._next_at = now + self._every_s
            self.tell(NodeHello(*self._hello, figures, parts))

    def hurry(self) -> None:
        """Say hello with the next beat."""
        self._next_at = 0.0

    def tell(self, message: NodeHello | Answered | Announced, body: Sequence[bytes] = ()) -> None:
        """Send to the broker, if it takes anything."""
        send(self.socket, encode(message, body), self._bounds.message_bytes)

    def asked(self) -> list[tuple[Asked, list[bytes]]]:
        """Return what clients have asked since the last call."""
        asked = []
        for frames in drain(self.socket, 64):
            try:
                message, body = CODEC.decode(frames)
            except RemoteProtocolError as wrong:
                get_logger().warning("the broker's message refused", error=str(wrong))
                continue
            if isinstance(message, Asked):
                asked.append((message, body))
            elif isinstance(message, LauncherReply):
                text = read_json(message.buffers[0], body[0]) if message.buffers else None
                self.told.append((message, text))
            elif isinstance(message, Problem):
                get_logger().error("refused by the broker", error=message.message)
                if message.code == "access":
                    self._line.again(time.monotonic())
        return asked

    def close(self) -> None:
        """Close the socket, giving the last answer a moment to leave."""
        self._line.close()
        self.socket.close(linger=500)
