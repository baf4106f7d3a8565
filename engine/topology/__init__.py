"""topology.yaml: which processes run where, over which sockets, within which bounds.

Reading order: records (what a topology is), shapes and fields (the one table of the file's keys),
yaml_lines (YAML to plain values and lines), reader, rules (what fields together must satisfy), file
(`load`), schema (JSON Schema and the tables of docs/topology.md).
"""

from .file import load, resolved, resolved_yaml
from .records import (
    BROKER_EDGES,
    IPC_PATH_LIMIT_BYTES,
    ROUTER_EDGES,
    BackendSpec,
    BrokerSpec,
    Durability,
    Host,
    Limits,
    MetricsSpec,
    Node,
    Placement,
    RouterSpec,
    SandboxSpec,
    Stage,
    Timeouts,
    Topology,
    TracesSpec,
)

__all__ = [
    "BROKER_EDGES",
    "IPC_PATH_LIMIT_BYTES",
    "ROUTER_EDGES",
    "BackendSpec",
    "BrokerSpec",
    "Durability",
    "Host",
    "Limits",
    "MetricsSpec",
    "Node",
    "Placement",
    "RouterSpec",
    "SandboxSpec",
    "Stage",
    "Timeouts",
    "Topology",
    "TracesSpec",
    "load",
    "resolved",
    "resolved_yaml",
]
