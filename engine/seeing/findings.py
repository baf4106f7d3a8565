"""What is wrong with a running topology, by name: two looks at its status in, findings out.

Job: run every rule.
Does not know: sockets, clocks or terminals.
Invariants: pure.
"""

from collections.abc import Callable, Iterator

from ..topology import Topology
from . import of_broker, of_nodes
from .found import Finding, in_order
from .rates import Span

Rule = Callable[[Span, Topology], Iterator[Finding]]
RULES: tuple[Rule, ...] = (
    of_nodes.workers,
    of_nodes.attempts,
    of_nodes.backends,
    of_nodes.presence,
    of_nodes.loops,
    of_broker.recovery,
    of_broker.disk,
    of_broker.bounds,
    of_broker.queues,
    of_broker.clients,
    of_broker.sandboxes,
    of_broker.losses,
)


def findings(span: Span, topology: Topology) -> list[Finding]:
    """Return what is wrong, the most severe first."""
    return in_order([found for rule in RULES for found in rule(span, topology)])


def unreachable(endpoint: str, waited_s: float) -> Finding:
    """Return the finding that the broker does not answer."""
    return Finding(
        "critical",
        "broker-unreachable",
        "broker",
        f"nobody answers at {endpoint}: it is not started, it is stopped, or the network is cut",
        f"no status within {waited_s:g} s",
        f"{waited_s:g} s",
        "start it with `rollmq up`; logs/broker.log on its host says why it ended",
        waited_s,
    )
