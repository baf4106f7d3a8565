"""What a picture of a topology shows: its boxes, and the sockets between them.

Job: put a topology into few words, the same ones for every kind of picture.
Does not know: how anything is drawn.
Invariants: every process of the topology is counted in exactly one box.
"""

from dataclasses import dataclass
from pathlib import Path

from ..topology import BackendSpec, RouterSpec, Stage, Topology
from ..topology.reader import show_bytes

GENERATING_STAGE = "run"


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the topology: its name, and lines that say more."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A pair of sockets: the edge, who speaks to whom, what goes over it, and where."""

    edge: str
    sockets: str
    carries: str
    where: str


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that a picture shows, from the top to the bottom.

    `generating` are the positions in `stages` of those that speak to the router.
    """

    heading: str
    trainer: Box
    to_trainer: tuple[Link, ...]
    broker: Box
    to_stages: tuple[Link, ...]
    stages: tuple[Box, ...]
    generating: tuple[int, ...]
    to_router: tuple[Link, ...]
    router: Box | None
    to_backends: tuple[Link, ...]
    backends: tuple[Box, ...]


def parts_of(topology: Topology) -> Parts:
    """Return what a picture of the topology shows."""
    routed = topology.router is not None
    to_router = _link(topology, "router", "DEALER - ROUTER", "generate, abort, release")
    to_backends = _link(topology, "router_backends", "ROUTER - DEALER", "the same, to one backend")
    count = len(topology.nodes())
    return Parts(
        heading=f"{topology.name}: {_plural(count, 'process', 'processes')} over "
        f"{topology.transport.upper()}",
        trainer=Box("trainer", ()),
        to_trainer=_link(topology, "front", "DEALER - ROUTER", "tasks in, results out"),
        broker=_broker(topology),
        to_stages=_stage_links(topology),
        stages=tuple(_stage(stage) for stage in topology.stages),
        generating=_generating(topology) if routed else (),
        to_router=to_router if routed else (),
        router=_router(topology.router) if topology.router else None,
        to_backends=to_backends if topology.backends else (),
        backends=tuple(_backend(backend) for backend in topology.backends),
    )


def _link(topology: Topology, edge: str, sockets: str, carries: str) -> tuple[Link, ...]:
    if topology.router is None and edge.startswith("router"):
        return ()
    return (Link(edge, sockets, carries, _where(topology, edge)),)


def _where(topology: Topology, edge: str) -> str:
    if topology.transport == "tcp":
        return topology.endpoint(edge).removeprefix("tcp://")
    return str(Path(topology.socket_dir.name) / edge)


def _stage_links(topology: Topology) -> tuple[Link, ...]:
    each = "its own port" if topology.transport == "tcp" else "s/w-*"
    return (
        *_link(topology, "control", "ROUTER - DEALER", "credit, heartbeats, leases"),
        Link("work", "PUSH - PULL", "inputs, a socket for each worker", each),
        *_link(topology, "results", "PULL - PUSH", "outputs"),
        *_link(topology, "events", "PUB - SUB", "hints, to every node"),
    )


def _generating(topology: Topology) -> tuple[int, ...]:
    names = [stage.name for stage in topology.stages]
    if GENERATING_STAGE in names:
        return (names.index(GENERATING_STAGE),)
    return tuple(range(len(names)))


def _broker(topology: Topology) -> Box:
    limits = topology.limits
    held = f"{limits.rollouts:,} rollouts, {show_bytes(limits.bytes)}"
    return Box(
        "broker", (f"on {topology.broker.host}", f"{held}, durability {topology.durability}")
    )


def _stage(stage: Stage) -> Box:
    workers = _plural(stage.worker_count, "worker", "workers")
    placed = [f"{place.count} on {place.host}" for place in stage.workers]
    where = [f"on {stage.workers[0].host}"] if len(placed) == 1 else placed
    return Box(stage.name, (f"{workers} x {stage.slots} slots", *where))


def _router(router: RouterSpec) -> Box:
    return Box("router", (f"on {router.host}", router.policy))


def _backend(backend: BackendSpec) -> Box:
    size = f"{backend.count} x {_plural(backend.capacity, 'session', 'sessions')}"
    return Box(backend.name, (f"{backend.kind}, {size}", f"on {backend.host}"))


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
