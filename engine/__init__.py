"""rollmq's bus: records, wire, topology, ledger, journal and client; knows no LLM and no sandbox.

What is exported here is the public API; a test locks it. What only trainers need is imported when
it is first asked for: a node, which is started often, needs neither the client nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    AccessRefused,
    BoundaryError,
    BrokerUnreachable,
    ClientError,
    FilterError,
    Full,
    JournalError,
    KeysError,
    LedgerError,
    LocalProtocolError,
    NodeFailed,
    NodeRefused,
    ProtocolError,
    Refused,
    RemoteProtocolError,
    Replaced,
    RollmqError,
    SourceFailed,
    StateLost,
    TopologyError,
)
from .records import BackendState, Failure, Published, Receipt, StageTiming, Task, Usage
from .topology import Topology, load

if TYPE_CHECKING:
    from .client import AsyncClient, Batch, Client
    from .trajectories import Rollout, Trajectory

__all__ = [
    "AccessRefused",
    "AsyncClient",
    "BackendState",
    "Batch",
    "BoundaryError",
    "BrokerUnreachable",
    "Client",
    "ClientError",
    "Failure",
    "FilterError",
    "Full",
    "JournalError",
    "KeysError",
    "LedgerError",
    "LocalProtocolError",
    "NodeFailed",
    "NodeRefused",
    "ProtocolError",
    "Published",
    "Receipt",
    "Refused",
    "RemoteProtocolError",
    "Replaced",
    "RollmqError",
    "Rollout",
    "SourceFailed",
    "StageTiming",
    "StateLost",
    "Task",
    "Topology",
    "TopologyError",
    "Trajectory",
    "Usage",
    "load",
]

_LATER = {
    "AsyncClient": ".client",
    "Batch": ".client",
    "Client": ".client",
    "Rollout": ".trajectories",
    "Trajectory": ".trajectories",
}


if not TYPE_CHECKING:  # or wrong names would have the type Any

    def __getattr__(name: str) -> Any:
        """Import what is exported and not here yet."""
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_LATER[name], __name__), name)
        return found


def __dir__() -> list[str]:
    """Name what is exported, here already or not."""
    return sorted(globals().keys() | _LATER.keys())
