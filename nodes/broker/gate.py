"""What each key may say to the broker: names belong to keys.

Job: refuse a message whose names are not its sender's: a node's lives on the key's host, a client's
begins with the key's name, a connection's id stays with the key that used it first.
Does not know: sockets; how keys are checked at the handshake.
Invariants: a key that is no more on the list may say nothing.
"""

from typing import Any, Protocol

from engine.messages import Announced, Cancel, Hello, NodeHello, StageResult
from engine.security import Allowed, Denied, Peer, owns
from engine.topology import Topology

POLICY = "policy_version"  # as routers name it in figures and announcements


class Listed(Protocol):
    """Whoever has the allow-list as it is now."""

    allowed: Allowed


class Gate:
    """Checks messages by the allow-list; every method raises Denied.

    Nodes that the topology does not have, or not any more, live where their names say.
    """

    def __init__(self, listed: Listed, topology: Topology) -> None:
        self._listed = listed
        self.go_by(topology)

    def go_by(self, topology: Topology) -> None:
        """Know the nodes of another topology from now on."""
        self._topology = topology
        self._nodes = {node.name: node for node in topology.nodes()}

    def peer(self, key: str) -> Peer:
        """Return whose key it is."""
        peer = self._listed.allowed.owner(key)
        if peer is None:
            raise Denied("the key of this connection is revoked")
        return peer

    def trainer(self, key: str, before: str, message: Any) -> Peer:
        """Return who sent a message; `before` is the key under which the connection said hello."""
        peer = self.peer(key)
        if before and before != key and self._listed.allowed.owner(before) != peer:
            raise Denied("this connection's id belongs to another key")
        if isinstance(message, Hello | Cancel) and not owns(peer, message.client_id or peer.name):
            may = f"{peer.name} or {peer.name}-..."
            raise Denied(f"the key of {peer} speaks for {may} alone", "client_id")
        return peer

    def node(self, key: str, route: bytes, message: Any) -> None:
        """Check a message on the control socket; `route` is its connection's id."""
        peer = self.peer(key)
        self._expect_here(peer, route.decode("utf-8", "replace").rpartition("-")[0], "routing id")
        name = getattr(message, "node", None)
        if name is not None:
            self._expect_here(peer, name, "node")
        if getattr(message, "host", peer.name) != peer.name:
            raise Denied(f"the key of {peer} speaks for its own host alone", "host")
        known = self._nodes.get(name) if name is not None else None
        if isinstance(message, NodeHello) and known and known.role != message.role:
            raise Denied(f"{name} is a {known.role}", "role")
        tells_policy = isinstance(message, Announced) and message.name == POLICY
        if tells_policy and (known is None or known.role != "router"):
            raise Denied(f"{name} is no router", "name")

    def result(self, key: str, message: StageResult) -> None:
        """Check a result."""
        node = message.worker_id.rpartition("-")[0]
        self._expect_here(self.peer(key), node, "worker_id")

    def host_of(self, node: str) -> str:
        """Return the host of a node."""
        known = self._nodes.get(node)
        return self._topology.host_by_name(node) if known is None else known.host

    def _expect_here(self, peer: Peer, node: str, field: str) -> None:
        if peer != Peer(self.host_of(node), "host"):
            raise Denied(f"{node!r} is not on the host of this key ({peer})", field)
