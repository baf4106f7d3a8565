"""The router's keys: which connection belongs to which, and what a revoked one loses.

Job: let in by ZAP, and find out whether a key may speak for a connection's node.
Does not know: what is said.
Invariants: a connection's id begins with its node's name, and that node lives on its key's host;
nodes that the topology does not have live where their names say, or on the router's.
"""

from dataclasses import replace

import zmq

from engine.security import Denied, Gatekeeper, KeyStore, Peer, ServerKey, server_key
from engine.topology import Topology


class Door:
    """The gatekeeper of the router's context with its one rule."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", topology: Topology) -> None:
        """Begin to answer handshakes. Raises: KeysError."""
        assert topology.keys is not None
        assert topology.router is not None
        server = server_key(topology, "")
        assert server is not None
        self._server = server
        self.gatekeeper = Gatekeeper(context, KeyStore(topology.keys))
        self.go_by(topology)

    def go_by(self, topology: Topology) -> None:
        """Know the nodes of another topology from now on."""
        self._topology = topology
        self._hosts = {node.name: node.host for node in topology.nodes()}

    def key(self, domain: str) -> ServerKey:
        """Return what a socket of this domain binds with."""
        return replace(self._server, domain=domain)

    def host_of(self, peer: str) -> str:
        """Return the host of a connection's node."""
        node = peer.rpartition("-")[0]
        return self._hosts.get(node) or self._topology.host_by_name(node)

    def doubt(self, key: str, peer: str) -> Denied | None:
        """Return why a key may not speak for a connection; None if it may."""
        owner = self.gatekeeper.allowed.owner(key)
        if owner is None:
            return Denied("the key of this connection is revoked")
        if owner != Peer(self.host_of(peer), "host"):
            return Denied(f"{peer[:100]!r} is not on the host of this key ({owner})")
        return None

    def shut_out(self, now: float) -> set[str]:
        """Follow the allow-list; return the hosts that have no key any more."""
        gone = self.gatekeeper.follow(now)
        return self.gatekeeper.allowed.hosts_without_key(gone.values())


def open_door(context: "zmq.Context[zmq.Socket[bytes]]", topology: Topology) -> Door | None:
    """Return the door of a topology with keys over TCP; None without. Raises: KeysError."""
    if topology.keys is None or topology.transport == "ipc":
        return None
    return Door(context, topology)
