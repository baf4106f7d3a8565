"""The processes of backends that were added while the router ran.

Job: start them, start them again with a growing delay when they end, and stop them.
Does not know: what a backend does, or the sockets that it uses.
Invariants: each dies with the router, and logs into the run directory. Nothing here waits: a child
that is asked to stop is killed by a later `watch` if it has not ended by its deadline.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from engine.logs import get_logger
from engine.process import Backoff, ended_by, node_backoff, spawn
from engine.supervisor import BACKEND_MODULES

from .roster import Added


@dataclass(slots=True, eq=False)
class Child:
    """One added backend's process, over its restarts."""

    added: Added
    file: Path
    process: subprocess.Popen[bytes]
    started_at: float
    backoff: Backoff = field(default_factory=node_backoff)
    restart_at: float | None = None
    kill_at: float | None = None


class Children:
    """Every added backend's process, by the name of its node."""

    def __init__(self, logs: Path, drain_s: float) -> None:
        self._logs = logs
        self._drain_s = drain_s
        self._children: dict[str, Child] = {}
        self._log = get_logger()

    def start(self, added: Added, file: Path, now: float) -> None:
        """Start a backend whose topology file is there. Raises: OSError."""
        process = self._spawn(added, file)
        self._children[added.node] = Child(added, file, process, now)

    def stop(self, node: str, now: float) -> None:
        """Ask a child to end, and start it no more; unknown ones are ignored."""
        child = self._children.get(node)
        if child is not None and child.kill_at is None:
            child.kill_at = now + self._drain_s + 2.0
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)

    def is_stopping(self, node: str) -> bool:
        """Return whether a process of that name is still there after it was asked to end."""
        child = self._children.get(node)
        return child is not None and child.kill_at is not None

    def watch(self, now: float) -> None:
        """Start what has ended, and end what was to stop; call it often."""
        for node, child in list(self._children.items()):
            ended = child.process.poll() is not None
            if child.kill_at is not None:
                if ended:
                    del self._children[node]
                elif now >= child.kill_at:
                    os.killpg(child.process.pid, signal.SIGKILL)
            elif child.restart_at is not None:
                if now >= child.restart_at:
                    child.process = self._spawn(child.added, child.file)
                    child.started_at, child.restart_at = now, None
            elif ended:
                self._plan_restart(node, child, now)

    def close(self) -> None:
        """Ask every child to end, and make sure within the drain's time."""
        now = time.monotonic()
        for node in self._children:
            self.stop(node, now)
        give_up_at = now + self._drain_s + 1.0
        for child in self._children.values():
            ended_by(child.process, give_up_at)
        self._children.clear()

    def _plan_restart(self, node: str, child: Child, now: float) -> None:
        delay_s = child.backoff.ended(now - child.started_at)
        child.restart_at = now + delay_s
        status = child.process.returncode
        self._log.warning("added backend ended", child=node, status=status, again_in_s=delay_s)

    def _spawn(self, added: Added, file: Path) -> subprocess.Popen[bytes]:
        module = BACKEND_MODULES[added.kind]
        command = [sys.executable, "-m", module, "--topology", str(file), "--name", added.node]
        return spawn(command, self._logs / f"{added.node}.log")
