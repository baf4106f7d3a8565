"""A simulated backend that also notes when it sampled how many tokens, and what it stopped.

In `<run_dir>/<node>.tokens` each line is the system's monotonic clock, in seconds, and all tokens
sampled until then; in `<node>.aborts`, that clock and the session of a request that was aborted.
"""

import sys
import time
from pathlib import Path
from typing import Any

from engine.topology import Topology
from nodes.backends.simulator import process
from nodes.backends.simulator.process import Simulator
from nodes.inference.messages import Generate


class NotingSimulator(Simulator):
    """The simulator, with a look at its counter after every turn of its loop."""

    def __init__(self, topology: Topology, node: str) -> None:
        super().__init__(topology, node)
        run_dir = topology.run_dir
        self._tokens = path_of(run_dir, node, "tokens").open("w", encoding="utf-8", buffering=1)
        self._aborts = path_of(run_dir, node, "aborts").open("w", encoding="utf-8", buffering=1)
        self._noted = 0
        self._sessions: dict[str, str] = {}

    def _advance(self, now: float) -> None:
        super()._advance(now)
        tokens = self._scheduler.counts.tokens
        if tokens != self._noted:
            self._noted = tokens
            self._tokens.write(f"{time.monotonic():.6f} {tokens}\n")

    def _generate(self, message: Generate, body: list[Any], now: float) -> None:
        self._sessions[message.request_id] = message.session
        super()._generate(message, body, now)

    def _abort(self, ticket: str, now: float) -> None:
        super()._abort(ticket, now)
        if ticket in self._sessions:
            self._aborts.write(f"{time.monotonic():.6f} {self._sessions[ticket]}\n")


def path_of(run_dir: Path, node: str, what: str) -> Path:
    """Return where a node's notes are, `tokens` or `aborts`."""
    return run_dir / f"{node}.{what}"


def sampled(run_dir: Path, nodes: list[str], until: float = float("inf")) -> int:
    """Return how many tokens these nodes had sampled by a moment of the monotonic clock."""
    found = [_read(run_dir, node, "tokens") for node in nodes]
    return sum(max((int(each) for at, each in lines if at <= until), default=0) for lines in found)


def aborted(run_dir: Path, nodes: list[str], since: float) -> dict[str, float]:
    """Return the sessions of which a request was aborted since a moment, and when it was."""
    found = [line for node in nodes for line in _read(run_dir, node, "aborts")]
    return {session: at for at, session in found if at >= since}


def _read(run_dir: Path, node: str, what: str) -> list[tuple[float, str]]:
    lines = path_of(run_dir, node, what).read_text(encoding="utf-8").splitlines()
    return [(float(at), rest) for at, _, rest in (line.partition(" ") for line in lines)]


if __name__ == "__main__":
    process.Simulator = NotingSimulator  # type: ignore[misc]
    sys.exit(process.main())
