"""topology.yaml: which processes run where, over which sockets, within which bounds.

Reading order: records (what a topology is), shapes and fields (the one table of the file's keys),
yaml_lines (YAML to plain values and lines), reader, rules (what fields together must satisfy), file
(`load`), plan (what changes from one to another, and what of it live), applied (what runs, on
disk), schema (JSON Schema and the tables of docs/topology.md).
"""

from .applied import Applied
from .file import load, load_text, readable, resolved, resolved_yaml
from .plan import Change, Plan, differences, later_elsewhere, merged, must_replace, plan
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
    "Applied",
    "BackendSpec",
    "BrokerSpec",
    "Change",
    "Durability",
    "Host",
    "Limits",
    "MetricsSpec",
    "Node",
    "Placement",
    "Plan",
    "RouterSpec",
    "SandboxSpec",
    "Stage",
    "Timeouts",
    "Topology",
    "TracesSpec",
    "differences",
    "later_elsewhere",
    "load",
    "load_text",
    "merged",
    "must_replace",
    "plan",
    "readable",
    "resolved",
    "resolved_yaml",
]
