"""What changes from one topology to another, and what of it can change while it runs.

Job: merge into a running topology what of another can be changed live, say what differs between two
as rows for people, and name the workers that have to be replaced for it.
Does not know: files, processes, sockets, or who carries it out.
Invariants: `merged` is the only place that says what is live: a key that it does not take over
needs a restart. Merging again what was merged changes nothing. What names a path, a port or a key
of a machine is never taken over, so each host merges with its own file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from .file import readable
from .records import BackendSpec, Host, Limits, Node, Stage, Timeouts, Topology

ABSENT = "-"
LIVE_TIMEOUTS = ("drain_s", "cancel_grace_s", "connect_s", "start_s", "retry_delay_s")
LIVE_LIMITS = (
    "rollouts",
    "bytes",
    "memory_bytes",
    "group",
    "client_window",
    "client_bytes",
    "retention_s",
)
LIVE_STAGE = ("workers", "slots", "memory_bytes", "timeout_s", "attempts", "ready")
SLOTS_GROWTH = 2  # a worker has room for so many times the slots that it was started with


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: the key's place, and both values as text; ABSENT is no value."""

    what: str
    was: str
    now: str
    live: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What `apply` comes to; `merged` is what runs once it is done."""

    merged: Topology
    changes: tuple[Change, ...]

    @property
    def left(self) -> tuple[Change, ...]:
        """What needs a restart, and is not done."""
        return tuple(change for change in self.changes if not change.live)


def plan(running: Topology, wanted: Topology) -> Plan:
    """Return how a running topology gets as close to another as it can without a restart."""
    result = merged(running, wanted)
    live = differences(running, result, live=True)
    return Plan(result, (*live, *differences(result, wanted, live=False)))


def merged(running: Topology, wanted: Topology) -> Topology:
    """Return the running topology with all of another that can be changed live."""
    stages = {stage.name: stage for stage in wanted.stages}
    return replace(
        running,
        log_level=wanted.log_level,
        hosts=_hosts(running, wanted),
        timeouts=_taken(running.timeouts, wanted.timeouts, LIVE_TIMEOUTS),
        limits=_limits(running.limits, wanted.limits),
        stages=tuple(_stage(stage, stages.get(stage.name)) for stage in running.stages),
        backends=_backends(running, wanted),
    )


def differences(was: Topology, now: Topology, *, live: bool) -> tuple[Change, ...]:
    """Return the keys whose values differ, in the order of the file."""
    old, new = _leaves(was), _leaves(now)
    names = [*new, *(name for name in old if name not in new)]
    changed = [name for name in names if old.get(name, ABSENT) != new.get(name, ABSENT)]
    return tuple(
        Change(name, old.get(name, ABSENT), new.get(name, ABSENT), live) for name in changed
    )


def must_replace(node: Node, started: Topology, now: Topology) -> bool:
    """Return whether a node has to be started anew to go by a newer topology.

    started: what the node went by when it was started. A node that need not, re-reads its file.
    """
    match node.role:
        case "worker":
            before, after = started.stage(node.spec), now.stage(node.spec)
            outgrown = after.slots > SLOTS_GROWTH * before.slots
            return outgrown or later_elsewhere(started, node) != later_elsewhere(now, node)
        case "backend":
            return started.backend(node.spec) != replace(
                now.backend(node.spec), count=started.backend(node.spec).count
            )
        case _:
            return False


def later_elsewhere(topology: Topology, node: Node) -> tuple[str, ...]:
    """Return the stages after a worker's without a worker on its host: none may follow a pin."""
    names = [stage.name for stage in topology.stages]
    later = topology.stages[names.index(node.spec) + 1 :]
    return tuple(
        stage.name for stage in later if node.host not in {place.host for place in stage.workers}
    )


def _taken(running: Timeouts, wanted: Timeouts, names: tuple[str, ...]) -> Timeouts:
    return replace(running, **{name: getattr(wanted, name) for name in names})


def _limits(running: Limits, wanted: Limits) -> Limits:
    return replace(running, **{name: getattr(wanted, name) for name in LIVE_LIMITS})


def _stage(running: Stage, wanted: Stage | None) -> Stage:
    if wanted is None:
        return running
    return replace(running, **{name: getattr(wanted, name) for name in LIVE_STAGE})


def _hosts(running: Topology, wanted: Topology) -> tuple[Host, ...]:
    """Take over hosts that come, go or move, but for those at which others connect."""
    if running.transport != wanted.transport:
        return running.hosts
    bound = {running.broker.host} | ({running.router.host} if running.router else set())
    kept = {host.name: host for host in running.hosts if host.name in bound}
    taken = [
        replace(host, address=kept[host.name].address) if host.name in kept else host
        for host in wanted.hosts
    ]
    names = {host.name for host in taken}
    return (*taken, *(host for name, host in kept.items() if name not in names))


def _backends(running: Topology, wanted: Topology) -> tuple[BackendSpec, ...]:
    """Take over all but a backend's host: its name would be on two of them at once."""
    if running.router is None:
        return running.backends
    before = {backend.name: backend for backend in running.backends}
    return tuple(
        replace(backend, host=before[backend.name].host) if backend.name in before else backend
        for backend in wanted.backends
    )


def _leaves(topology: Topology) -> dict[str, str]:
    found: dict[str, str] = {}
    _flatten("", readable(topology), found)
    return found


def _flatten(place: str, value: Any, found: dict[str, str]) -> None:
    if isinstance(value, Mapping) and value and not place.endswith(".options"):
        _flatten_all(place, value.items(), found)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        found[f"{place}, in order"] = ", ".join(str(each["name"]) for each in value)
        _flatten_all(place, ((each["name"], each) for each in value), found)
    else:
        found[place] = _text(value)


def _flatten_all(place: str, items: Any, found: dict[str, str]) -> None:
    for name, value in items:
        _flatten(f"{place}.{name}" if place else str(name), value, found)


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("...\n").strip()
