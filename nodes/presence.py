"""The tie of a node that is not a worker to the broker: it says that it is there.

Job: repeat NodeHello with figures over one DEALER; whatever the broker answers is not needed.
Does not know: what the node does. A node works without a broker, so nothing here waits for one.
Invariants: one hello a heartbeat; a broker that is away costs nothing but a bounded queue.
"""

import zmq

from engine.messages.worker import NodeHello, Role
from engine.sockets import Bounds, drain, open_socket, send
from engine.topology import Topology
from engine.wire import encode

PENDING_HELLOS = 4  # enough for a short absence of the broker; older ones say nothing new


class Presence:
    """Say hello to the broker, again and again."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        topology: Topology,
        node: str,
        boot_id: str,
        role: Role,
    ) -> None:
        bounds = Bounds(PENDING_HELLOS, topology.limits.message_bytes)
        self.socket = open_socket(context, zmq.DEALER, bounds, boot_id)
        self.socket.connect(topology.endpoint("control"))
        self._bounds = bounds
        self._hello = (boot_id, node, role, topology.node(node).host)
        self._every_s = topology.timeouts.heartbeat_s
        self._next_at = 0.0

    def beat(self, now: float, figures: dict[str, float]) -> None:
        """Say hello if it is time; `now` is in seconds."""
        drain(self.socket, 64)
        if now >= self._next_at:
            self._next_at = now + self._every_s
            message = NodeHello(*self._hello, figures)
            send(self.socket, encode(message), self._bounds.message_bytes)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
