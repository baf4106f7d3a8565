"""The topology as records: which processes run where, over which sockets, within which bounds.

Job: hold a topology whose every default is filled in, and derive what follows from it: endpoints,
socket paths and the processes to start.
Does not know: YAML, how a file is checked (`load` does both), or ZeroMQ.
Invariants: a Topology that `load` returned is consistent: every host named exists, names are
unique, every socket path fits into a Unix socket's address, and every bound is finite.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Durability = Literal["none", "process", "power"]
Role = Literal["broker", "router", "backend", "sandboxes", "metrics", "worker"]
Transport = Literal["ipc", "tcp"]

BROKER_EDGES = ("front", "control", "results", "events")
ROUTER_EDGES = ("router", "router_backends")
IPC_PATH_LIMIT_BYTES = 107
"""Linux keeps 108 bytes for a Unix socket's path, of which the last one is the NUL."""


@dataclass(frozen=True, slots=True)
class Host:
    """A machine; without an address it is this one, reached over IPC."""

    name: str
    address: str | None
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class BrokerSpec:
    """Where the broker runs; `port` is the first of four in a row, used over TCP only."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of the broker and its sockets; reaching one is backpressure, never a loss."""

    rollouts: int
    bytes: int
    memory_bytes: int
    message_bytes: int
    group: int
    queue_messages: int
    client_window: int
    client_bytes: int
    retention_s: float


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one side waits for another before it acts."""

    heartbeat_s: float
    lease_s: float
    drain_s: float
    cancel_grace_s: float
    connect_s: float
    start_s: float
    retry_delay_s: float


@dataclass(frozen=True, slots=True)
class Placement:
    """How many workers of a stage run on a host."""

    host: str
    count: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A named step of the pipeline and the workers that do it.

    `slots` and `memory_bytes` are one worker's credit; `ready` bounds the rollouts that wait for
    this stage on one host.
    """

    name: str
    workers: tuple[Placement, ...]
    slots: int
    memory_bytes: int
    timeout_s: float
    attempts: int
    ready: int
    handler: str | None

    @property
    def worker_count(self) -> int:
        """The workers of this stage, over all hosts."""
        return sum(placement.count for placement in self.workers)


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """The inference router; `port` is the first of two in a row, used over TCP only."""

    host: str
    port: int
    policy: str
    idle_s: float
    queue: int
    sessions: int
    share_prefix_across_versions: bool


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """`count` inference backends of one kind; `capacity` is the open sessions of each.

    `options` belong to the backend; the engine never reads them.
    """

    name: str
    kind: str
    host: str
    count: int
    capacity: int
    options: dict[str, object]


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """How sandboxes are made; the quantities are the most that a task may ask for.

    `images` are absolute paths by name.
    """

    provider: str
    unsafe: bool
    pool: int
    images: dict[str, str]
    memory_bytes: int
    total_bytes: int
    disk_bytes: int
    processes: int
    cpu_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class MetricsSpec:
    """Where figures for Prometheus are served, on the broker's host."""

    port: int
    bind: str


@dataclass(frozen=True, slots=True)
class TracesSpec:
    """Where spans are sent, and of which share of rollouts."""

    endpoint: str
    sample: float


@dataclass(frozen=True, slots=True)
class Node:
    """A process to start.

    `spec` names what it is one of (a stage or a backend; "broker" and "router" stand for
    themselves) and `index` counts from 0 within it; workers are counted on each host of their own,
    so that no worker's name depends on how many there are elsewhere.
    """

    name: str
    role: Role
    host: str
    spec: str
    index: int


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole topology; `path` is its file; `run_dir` and `keys` are absolute.

    `beside` is the directory that relative paths are relative to, also those that the engine does
    not read.
    """

    path: Path
    beside: Path
    name: str
    run_dir: Path
    durability: Durability
    insecure: bool
    keys: Path | None
    hosts: tuple[Host, ...]
    broker: BrokerSpec
    limits: Limits
    timeouts: Timeouts
    stages: tuple[Stage, ...]
    router: RouterSpec | None
    backends: tuple[BackendSpec, ...]
    sandboxes: SandboxSpec | None
    log_level: str
    filters: dict[str, str]
    metrics: MetricsSpec | None
    traces: TracesSpec | None

    @property
    def transport(self) -> Transport:
        """How processes reach each other: "tcp" as soon as a host has an address."""
        return "tcp" if any(host.address for host in self.hosts) else "ipc"

    @property
    def socket_dir(self) -> Path:
        """The directory of the IPC sockets; a short name, because their paths are limited."""
        return socket_dir(self.run_dir)

    def endpoint(self, edge: str) -> str:
        """Return the ZeroMQ endpoint that an edge's binding side binds and the others connect to.

        `edge` is one of front, control, results, events (bound by the broker), router (for run
        workers) and router_backends (both bound by the router).

        Raises:
            ValueError: no such edge, or the topology has no router.

        """
        host, port = self._bound(edge)
        if self.transport == "ipc":
            return f"ipc://{self.socket_dir / edge}"
        return f"tcp://{self._tcp_address(host)}:{port}"

    def worker_endpoint(self, node: str, boot: str) -> str:
        """Return the endpoint that the broker binds for the work of one worker.

        `node` is the worker's name, `boot` the 8 hexadecimal digits of this start of it. Over TCP
        the port is `*`: the system chooses it, and the worker is told.
        """
        if self.transport == "ipc":
            return f"ipc://{worker_socket(self.run_dir, node, boot)}"
        return f"tcp://{self._tcp_address(self.broker.host)}:*"

    def sandbox_socket(self, host: str) -> Path:
        """Return the Unix socket of the process that owns a host's sandboxes."""
        return self.socket_dir / f"sandboxes-{host}"

    def nodes(self, host: str | None = None) -> tuple[Node, ...]:
        """Return the processes to start, on one host or on all, binding sides first.

        Raises:
            KeyError: the topology has no such host.

        """
        if host is None:
            return self._all_nodes()
        self.host(host)
        return tuple(node for node in self._all_nodes() if node.host == host)

    def node(self, name: str) -> Node:
        """Return the process of that name, or raise KeyError."""
        return {node.name: node for node in self._all_nodes()}[name]

    def host(self, name: str) -> Host:
        """Return the host of that name, or raise KeyError."""
        return {host.name: host for host in self.hosts}[name]

    def stage(self, name: str) -> Stage:
        """Return the stage of that name, or raise KeyError."""
        return {stage.name: stage for stage in self.stages}[name]

    def backend(self, name: str) -> BackendSpec:
        """Return the backends of that name, or raise KeyError."""
        return {backend.name: backend for backend in self.backends}[name]

    def host_by_name(self, node: str) -> str:
        """Return the host of a node that this topology does not have, or not any more."""
        name, dot, host = node.partition(".")
        if dot:
            return host
        placed = {"sandboxes", *(stage.name for stage in self.stages)}
        added = name.rpartition("-")[0] not in placed and self.router is not None
        return self.router.host if added and self.router else self.broker.host

    def host_of(self, node: str) -> str:
        """Return the host of a node, whether or not this topology has it."""
        known = {each.name: each.host for each in self._all_nodes()}
        return known.get(node) or self.host_by_name(node)

    def may_be(self, node: str, stage: str, host: str) -> bool:
        """Return whether a worker may have this name, here or in another count of workers."""
        spec, _, number = node.removesuffix(f".{host}").rpartition("-")
        if spec != stage or stage not in {each.name for each in self.stages}:
            return False
        known = number.isascii() and number.isdecimal()
        return known and node == placed_name(spec, int(number), host, self.broker.host)

    def _bound(self, edge: str) -> tuple[str, int]:
        if edge in BROKER_EDGES:
            return self.broker.host, self.broker.port + BROKER_EDGES.index(edge)
        if edge not in ROUTER_EDGES:
            allowed = ", ".join(BROKER_EDGES + ROUTER_EDGES)
            raise ValueError(f"no edge {edge!r}; the edges are {allowed}")
        if self.router is None:
            raise ValueError(f"edge {edge!r} needs a router, and topology {self.name!r} has none")
        return self.router.host, self.router.port + ROUTER_EDGES.index(edge)

    def _tcp_address(self, host: str) -> str:
        address = self.host(host).address or ""
        return f"[{address}]" if ":" in address else address

    def _all_nodes(self) -> tuple[Node, ...]:
        nodes = [Node("broker", "broker", self.broker.host, "broker", 0)]
        if self.router is not None:
            nodes.append(Node("router", "router", self.router.host, "router", 0))
        for backend in self.backends:
            hosts = [backend.host] * backend.count
            nodes += _numbered(backend.name, "backend", hosts)
        if self.sandboxes is not None:
            hosts = [each.host for stage in self.stages for each in stage.workers]
            for host in dict.fromkeys(hosts):
                nodes.append(self._placed("sandboxes", "sandboxes", host, 0))
        if self.metrics is not None:
            nodes.append(Node("metrics", "metrics", self.broker.host, "metrics", 0))
        for stage in self.stages:
            for placed in stage.workers:
                for number in range(placed.count):
                    nodes.append(self._placed(stage.name, "worker", placed.host, number))
        return tuple(nodes)

    def _placed(self, spec: str, role: Role, host: str, index: int) -> Node:
        return Node(placed_name(spec, index, host, self.broker.host), role, host, spec, index)


def socket_dir(run_dir: Path) -> Path:
    """Return the directory of a run's IPC sockets."""
    return run_dir / "s"


def worker_socket(run_dir: Path, node: str, boot: str) -> Path:
    """Return the IPC socket that carries work to one start of one worker."""
    return socket_dir(run_dir) / f"w-{node}-{boot}"


def placed_name(spec: str, index: int, host: str, home: str) -> str:
    """Name a node that is counted on its host: `run-0`, or `run-0.b` on a host b.

    `home` is the broker's host, whose nodes do not carry its name.
    """
    return f"{spec}-{index}" if host == home else f"{spec}-{index}.{host}"


def longest_socket(run_dir: Path, workers: Iterable[str]) -> Path:
    """Return the longest IPC path that a run uses; `workers` are their names."""
    paths = [socket_dir(run_dir) / edge for edge in BROKER_EDGES + ROUTER_EDGES]
    paths += [worker_socket(run_dir, worker, "0" * 8) for worker in workers]
    return max(paths, key=lambda path: len(os.fsencode(path)))


def _numbered(spec: str, role: Role, hosts: list[str]) -> list[Node]:
    return [Node(f"{spec}-{i}", role, host, spec, i) for i, host in enumerate(hosts)]
