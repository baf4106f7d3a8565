"""rollmq's bus: records, wire, topology, ledger, journal and client; knows no LLM and no sandbox.

What is exported here is the public API; a test locks it.
"""

from .client import AsyncClient, Batch, Client
from .errors import (
    BoundaryError,
    BrokerUnreachable,
    ClientError,
    FilterError,
    Full,
    JournalError,
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
from .records import (
    BackendState,
    Failure,
    Published,
    Receipt,
    Rollout,
    StageTiming,
    Task,
    Trajectory,
    Usage,
)
from .topology import Topology, load

__all__ = [
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
