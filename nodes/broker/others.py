"""The nodes that are not workers: what they told last, and how to reach them.

Job: keep each one's last hello with its figures, for status, and find one by its role.
Does not know: sockets, or what is said to such a node. `now` is an argument, in seconds.
Invariants: bounded: besides the topology's own nodes there are at most `MOST_ADDED` backends and
launchers, which may come and go while a topology runs; one that is silent for long is forgotten.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from msgspec import to_builtins

from engine.messages import NodeHello, Part

MOST_ADDED = 4096
FORGET_LEASES = 20
PROVIDED = "by_"  # before a provider's name in the figures of who keeps sandboxes


@dataclass(frozen=True, slots=True)
class Heard:
    """A node's last hello."""

    hello: NodeHello
    route: bytes
    at: float


class Others:
    """The last hello of every node that is not a worker."""

    def __init__(self, known: Container[str], lease_s: float) -> None:
        self._known = known
        self._lease_s = lease_s
        self._heard: dict[str, Heard] = {}

    def know(self, known: Container[str]) -> None:
        """Take other names for the topology's own."""
        self._known = known

    def takes(self, hello: NodeHello) -> bool:
        """Return whether a node that the topology does not name may be there all the same."""
        added = sum(name not in self._known for name in self._heard)
        if hello.role == "launcher":
            return hello.node == f"launcher.{hello.host}" and added < MOST_ADDED
        return hello.role == "backend" and (hello.node in self._heard or added < MOST_ADDED)

    def heard(self, hello: NodeHello, route: bytes, now: float) -> None:
        """Keep a hello, and forget added nodes that were silent for long."""
        self._heard[hello.node] = Heard(hello, route, now)
        for name, heard in list(self._heard.items()):
            if name not in self._known and now - heard.at > FORGET_LEASES * self._lease_s:
                del self._heard[name]

    def routes(self, role: str, now: float) -> list[bytes]:
        """Return the connections of the nodes of a role that are heard, the freshest first."""
        fresh = [
            heard
            for heard in self._heard.values()
            if heard.hello.role == role and now - heard.at <= self._lease_s
        ]
        return [heard.route for heard in sorted(fresh, key=lambda heard: -heard.at)]

    def heard_of(self) -> tuple[Part, ...]:
        """Return who was heard, by role, with the figures that name a provider of sandboxes."""
        return tuple(
            Part(name, heard.hello.role, _provider(heard.hello))
            for name, heard in self._heard.items()
        )

    def status(self, now: float) -> list[dict[str, Any]]:
        """Return what the status says of each."""
        return [
            {
                "node": name,
                "role": heard.hello.role,
                "host": heard.hello.host,
                "heard_s": round(now - heard.at, 3),
                "figures": heard.hello.figures,
                "parts": to_builtins(heard.hello.parts),
            }
            for name, heard in self._heard.items()
        ]


def _provider(hello: NodeHello) -> dict[str, float]:
    figures = hello.figures if hello.role == "sandboxes" else {}
    return {name: value for name, value in figures.items() if name.startswith(PROVIDED)}
