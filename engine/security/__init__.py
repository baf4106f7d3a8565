"""Who may connect and what each may say: CURVE keys, an allow-list by role, and ZAP.

Reading order: allowed (the list, and its rules without I/O), files (keys on disk), curve (keys on
sockets), line (a connection whose key may change or be refused), zap (the thread that ZeroMQ asks).
Without the topology's `keys`, or over IPC, nothing of this is used.
"""

from .allowed import ANYONE, Allowed, Denied, Domain, Peer, Role, domain_of_work, owns
from .curve import LIST_NAME, OwnKey, ServerKey
from .files import KeyStore, client_key, node_key, operator_name, server_key
from .line import LOOK_S, Line
from .zap import Gatekeeper

__all__ = [
    "ANYONE",
    "LIST_NAME",
    "LOOK_S",
    "Allowed",
    "Denied",
    "Domain",
    "Gatekeeper",
    "KeyStore",
    "Line",
    "OwnKey",
    "Peer",
    "Role",
    "ServerKey",
    "client_key",
    "domain_of_work",
    "node_key",
    "operator_name",
    "owns",
    "server_key",
]
