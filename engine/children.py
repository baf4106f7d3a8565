"""The processes of a launcher: started, started again when they end, drained, replaced.

Job: keep each node's process as it is wanted: up, gone, or new; `watch` does the next step of each.
Does not know: the bus, topologies, or why a node is wanted.
Invariants: nothing here waits but `stop_all`. A child that was asked to end is killed with its
group by a later `watch` if it has not ended by its deadline; one that is to be replaced is started
again only once its process has ended.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .errors import NodeFailed
from .logs import get_logger
from .process import Backoff, ended_by, node_backoff
from .topology import Node, Topology

log = get_logger()
Spawn = Callable[[Node], "subprocess.Popen[bytes]"]
GIVE_UP = 8  # short lives in a row after which the run is over
SLACK_S = 2.0  # what a node may need beyond its drain


@dataclass(slots=True, eq=False)
class Child:
    """One node's process, over its restarts; `started` is the topology that it was started by."""

    node: Node
    process: "subprocess.Popen[bytes]"
    started_at: float
    started: Topology
    backoff: Backoff = field(default_factory=node_backoff)
    restarts: int = 0
    restart_at: float | None = None
    kill_at: float | None = None  # it was asked to end
    comes_back: bool = False  # it was, to be started again


class Children:
    """The children of a launcher by name.

    spawn: starts a node's process. last_words: what a node said last, for failures.
    """

    def __init__(self, spawn: Spawn, last_words: Callable[[str], str]) -> None:
        self._spawn = spawn
        self._last_words = last_words
        self._by_name: dict[str, Child] = {}

    def __iter__(self) -> Iterator[Child]:
        """Iterate the children, those that are ending too."""
        return iter(self._by_name.values())

    def __len__(self) -> int:
        """Return how many children there are."""
        return len(self._by_name)

    def get(self, name: str) -> Child | None:
        """Return a child, if it is there."""
        return self._by_name.get(name)

    @property
    def changing(self) -> list[str]:
        """The names of those that are ending, or about to be started again for a change."""
        return [child.node.name for child in self._by_name.values() if child.kill_at is not None]

    def start(self, node: Node, topology: Topology, now: float) -> None:
        """Start a node; one that is ending comes back by the newer topology. Raises: OSError."""
        child = self._by_name.get(node.name)
        if child is None:
            process = self._spawn(node)
            self._by_name[node.name] = Child(node, process, now, topology)
        elif child.kill_at is not None:
            child.node, child.started, child.comes_back = node, topology, True

    def stop(self, name: str, patience_s: float, now: float, *, comes_back: bool = False) -> None:
        """Ask a child to end, and to come back; asking again changes whether it comes back."""
        child = self._by_name[name]
        child.comes_back = comes_back
        if child.kill_at is None:
            child.kill_at = now + patience_s + SLACK_S
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)

    def hang_up(self, name: str) -> None:
        """Tell a child that runs to read its file again."""
        child = self._by_name[name]
        if child.kill_at is None and child.restart_at is None and child.process.poll() is None:
            child.process.send_signal(signal.SIGHUP)

    def watch(self, now: float, topology: Topology) -> None:
        """Do the next step for each child; call it often.

        Raises: NodeFailed if a node keeps ending right after its start.
        """
        for child in list(self._by_name.values()):
            if child.kill_at is not None:
                self._see_off(child, now)
            elif child.restart_at is not None:
                if now >= child.restart_at:
                    child.restarts += 1
                    self._start_again(child, topology, now)
            elif child.process.poll() is not None:
                self._plan_restart(child, now)

    def stop_some(self, roles: Iterable[str], patience_s: float) -> None:
        """Drain the children of some roles and wait until they are gone, killed if need be."""
        children = [child for child in self._by_name.values() if child.node.role in set(roles)]
        for child in children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience_s + SLACK_S
        for child in children:
            if not ended_by(child.process, deadline):
                log.warning("node did not drain in time, killed", child=child.node.name)
            del self._by_name[child.node.name]

    def _see_off(self, child: Child, now: float) -> None:
        assert child.kill_at is not None
        if child.process.poll() is None:
            if now >= child.kill_at:
                log.warning("node did not drain in time, killed", child=child.node.name)
                os.killpg(child.process.pid, signal.SIGKILL)
                child.kill_at = now + SLACK_S
        elif child.comes_back:
            child.kill_at, child.comes_back = None, False
            self._start_again(child, child.started, now)
        else:
            del self._by_name[child.node.name]

    def _start_again(self, child: Child, topology: Topology, now: float) -> None:
        child.process = self._spawn(child.node)
        child.started, child.started_at, child.restart_at = topology, now, None

    def _plan_restart(self, child: Child, now: float) -> None:
        delay_s = child.backoff.ended(now - child.started_at)
        name, status = child.node.name, child.process.returncode
        is_hopeless = child.backoff.short_lives > GIVE_UP
        if is_hopeless and status > 0:  # one that was killed did not end by itself
            told = self._last_words(name)
            raise NodeFailed(f"{name} keeps ending (status {status}), the last time with:\n{told}")
        child.restart_at = now + delay_s
        log.warning("node ended", child=name, status=status)
