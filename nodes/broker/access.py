"""The broker's keys: whose message it is, and what a revoked key loses at once.

Job: let in by ZAP, check messages by the gate, and on revocation let go of what was let in before.
Does not know: the ledger's rules.
Invariants: what goes to a peer by itself ends with its key: deliveries to a trainer, work to a
host, events to all.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import zmq

from engine.errors import NodeFailed
from engine.logs import get_logger
from engine.security import Gatekeeper, KeyStore, ServerKey, server_key
from engine.topology import Topology

from .gate import Gate

Socket = zmq.Socket[bytes]
log = get_logger()


class Access:
    """The gatekeeper of a context with the broker's rules."""

    def __init__(self, context: zmq.Context[Socket], topology: Topology) -> None:
        """Begin to answer handshakes. Raises: KeysError."""
        assert topology.keys is not None
        server = server_key(topology, "")
        assert server is not None
        self._server = server
        self.gatekeeper = Gatekeeper(context, KeyStore(topology.keys))
        self.gate = Gate(self.gatekeeper, topology)

    def key(self, domain: str) -> ServerKey:
        """Return what a socket of this domain binds with."""
        return replace(self._server, domain=domain)

    def close(self) -> None:
        """Answer no more handshakes."""
        self.gatekeeper.close()


def open_access(context: zmq.Context[Socket], topology: Topology) -> Access | None:
    """Return the access of a topology with keys over TCP; None without. Raises: KeysError."""
    if topology.keys is None or topology.transport == "ipc":
        return None
    return Access(context, topology)


class Events:
    """The PUB socket: hints to all, bound again when somebody must not hear them any more."""

    def __init__(self, make: Callable[[], Socket]) -> None:
        """Bind it. Raises: NodeFailed."""
        self._make = make
        self._socket: Socket | None = make()

    def publish(self, frames: list[Any]) -> bool:
        """Send to whoever hears; return False if that was nobody."""
        if self._socket is None:
            return False
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def reopen(self) -> None:
        """Let everybody go; who may still hear connects again by itself."""
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger=0)
            self._socket = None

    def turn(self) -> None:
        """Bind again, if the address is free by now; it is a moment after the close."""
        if self._socket is None:
            try:
                self._socket = self._make()
            except NodeFailed as wrong:
                log.info("events not bound yet", error=str(wrong))
