"""A simulated backend that also notes when it sampled how many tokens; for benches that count them.

Each line of `<run_dir>/<node>.tokens` is the system's monotonic clock, in seconds, and all tokens
sampled until then. Nothing is noted while nothing is sampled.
"""

import sys
import time
from pathlib import Path

from engine.topology import Topology
from nodes.backends.simulator import process
from nodes.backends.simulator.process import Simulator


class NotingSimulator(Simulator):
    """The simulator, with a look at its counter after every turn of its loop."""

    def __init__(self, topology: Topology, node: str) -> None:
        super().__init__(topology, node)
        self._file = path_of(topology.run_dir, node).open("w", encoding="ascii", buffering=1)
        self._noted = 0

    def _advance(self, now: float) -> None:
        super()._advance(now)
        tokens = self._scheduler.counts.tokens
        if tokens != self._noted:
            self._noted = tokens
            self._file.write(f"{time.monotonic():.6f} {tokens}\n")


def path_of(run_dir: Path, node: str) -> Path:
    """Return where a node's notes are."""
    return run_dir / f"{node}.tokens"


def sampled(run_dir: Path, nodes: list[str], until: float = float("inf")) -> int:
    """Return how many tokens these nodes had sampled by a moment of the monotonic clock."""
    total = 0
    for node in nodes:
        lines = path_of(run_dir, node).read_text(encoding="ascii").splitlines()
        noted = [line.split() for line in lines]
        total += max((int(tokens) for at, tokens in noted if float(at) <= until), default=0)
    return total


if __name__ == "__main__":
    process.Simulator = NotingSimulator  # type: ignore[misc]
    sys.exit(process.main())
