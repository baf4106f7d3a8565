"""Which host of a topology is which node of an allocation, and what a lost node means.

Job: place hosts on nodes at the start, find a place for a host whose step has ended, and say what a
run can do without.
Does not know: Slurm's commands, processes or clocks.
Invariants: a node has one host at most. The same arguments give the same places.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from ..errors import NodeFailed
from ..topology import Topology


def place(
    hosts: Sequence[str], broker_host: str, nodes: Sequence[str], first: str
) -> dict[str, str]:
    """Return the node of each host.

    A host that is named like a node of the allocation is placed on it. Otherwise the broker's host
    takes the node `first`, and the rest take what is left, each in the order given.

    Raises: NodeFailed if there are fewer nodes than hosts.
    """
    if len(nodes) < len(hosts):
        raise NodeFailed(
            f"the topology has {len(hosts)} hosts and the allocation {len(nodes)} nodes: "
            f"ask for {len(hosts)} (--nodes={len(hosts)})"
        )
    placed = {host: host for host in hosts if host in nodes}
    left = [node for node in nodes if node not in placed.values()]
    if first in left:
        left.remove(first)
        left.insert(0, first)
    waiting = [host for host in hosts if host not in placed]
    if broker_host in waiting:
        waiting.remove(broker_host)
        waiting.insert(0, broker_host)
    placed |= dict(zip(waiting, left, strict=False))
    return {host: placed[host] for host in hosts}


def next_node(
    host: str, placed: Mapping[str, str], nodes: Sequence[str], up: AbstractSet[str]
) -> str | None:
    """Return where a host starts again: on its node, on a spare one, or nowhere for now.

    placed: the node of each host, or its last one. nodes: the allocation's, in order.
    """
    if placed[host] in up:
        return placed[host]
    used = {node for other, node in placed.items() if other != host}
    return next((node for node in nodes if node in up and node not in used), None)


def stays(topology: Topology, host: str) -> bool:
    """Return whether others connect to a host's address, and its state is on its disk."""
    router = topology.router
    return host == topology.broker.host or (router is not None and host == router.host)


def needs(topology: Topology, lost: AbstractSet[str]) -> str:
    """Return why a topology cannot go on without these hosts; empty if it can."""
    if topology.broker.host in lost:
        return "the broker was there"
    if topology.router is not None and topology.router.host in lost:
        return "the router was there"
    for stage in topology.stages:
        if stage.workers and {placed.host for placed in stage.workers} <= lost:
            return f"every worker of stage {stage.name} was there"
    if topology.backends and {backend.host for backend in topology.backends} <= lost:
        return "every backend was there"
    return ""
