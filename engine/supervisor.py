"""The launcher: starts the nodes of a topology on this machine, keeps them up, drains them.

Every node is a child that dies with the launcher (the kernel sees to it), writes its log to
`<run_dir>/logs/<node>.log`, and is restarted with a growing delay if it ends. A lock on the run
directory keeps a second launcher out; the address book tells others where the run is. The launcher
knows processes; what they do, it does not.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import orjson
import structlog

from .client import Client
from .errors import BrokerUnreachable, NodeFailed
from .files import write_whole
from .process import Backoff, ended_by, last_lines, node_backoff, spawn
from .security import operator_name
from .sockets import private_directory
from .topology import BROKER_EDGES, ROUTER_EDGES, Node, Topology

log = structlog.get_logger()
MODULES = {
    "broker": "nodes.broker",
    "router": "nodes.router",
    "sandboxes": "nodes.sandboxes",
    "worker": "nodes.stage",
}
BACKEND_MODULES = {"simulator": "nodes.backends.simulator", "vllm": "nodes.backends.vllm"}
PROVIDED = "by_"  # before a provider's name in the figures of who keeps sandboxes
GIVE_UP = 8  # short lives in a row after which the run is over
LAST_WORDS = 12  # lines of a node's log that its failure quotes


@dataclass(slots=True, eq=False)
class Child:
    """One node's process, over its restarts."""

    node: Node
    process: subprocess.Popen[bytes]
    started_at: float
    backoff: Backoff = field(default_factory=node_backoff)
    restarts: int = 0
    restart_at: float | None = None


class Supervisor:
    """Runs the nodes of one host of a topology.

    Raises: NodeFailed if another launcher has the run directory.
    """

    def __init__(self, topology: Topology, host: str | None = None) -> None:
        self._topology = topology
        self._host = host
        self._children: dict[str, Child] = {}
        self._lock: IO[str] | None = None
        self._providers: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Start every node.

        Raises: NodeFailed.
        """
        private_directory(self._topology.run_dir)
        self._take_lock()
        _write_address_book(self._topology)
        for node in self._topology.nodes(self._host):
            self._children[node.name] = Child(node, self._spawn(node), time.monotonic())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drain and stop every node."""
        self.stop()

    @property
    def restarts(self) -> dict[str, int]:
        """How often each node was restarted."""
        return {name: child.restarts for name, child in self._children.items() if child.restarts}

    @property
    def pids(self) -> dict[str, int]:
        """The nodes' process ids now."""
        return {name: child.process.pid for name, child in self._children.items()}

    @property
    def sandboxes(self) -> dict[str, str]:
        """Which provider makes the sandboxes of each host, as their keepers said when ready."""
        return dict(self._providers)

    def watch(self) -> None:
        """Restart what has ended; call it often.

        Raises: NodeFailed if a node keeps ending right after its start.
        """
        now = time.monotonic()
        for child in self._children.values():
            if child.restart_at is not None:
                if now >= child.restart_at:
                    child.process = self._spawn(child.node)
                    child.started_at, child.restart_at = now, None
                    child.restarts += 1
            elif child.process.poll() is not None:
                self._plan_restart(child, now)

    def wait_ready(self, deadline_s: float) -> None:
        """Wait until every node has said hello to the broker.

        Raises: NodeFailed naming the nodes that did not, with the end of their logs.
        """
        deadline = time.monotonic() + deadline_s
        missing = {child.node.name for child in self._children.values()}
        while time.monotonic() < deadline:
            self.watch()
            missing = self._missing()
            if not missing:
                return
            time.sleep(0.05)
        told = "\n".join(self._last_words(name) for name in sorted(missing))
        raise NodeFailed(f"not ready after {deadline_s:g} s: {', '.join(sorted(missing))}\n{told}")

    def stop(self) -> None:
        """Drain: workers first, then what they use, the broker last; then make sure."""
        order = (("worker",), ("backend", "router", "sandboxes"), ("broker",))
        for roles in order:
            children = [child for child in self._children.values() if child.node.role in roles]
            self._stop_some(children, self._topology.timeouts.drain_s + 2.0)
        self._children.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        lock = (self._topology.run_dir / "lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            where = self._topology.run_dir
            raise NodeFailed(
                f"{where} is in use by the launcher with process id {holder}"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _spawn(self, node: Node) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", self._module(node), "--topology", str(self._topology.path)]
        if node.role != "broker":
            command += ["--name", node.name]
        return spawn(command, self._log_path(node.name))

    def _module(self, node: Node) -> str:
        if node.role == "backend":
            return BACKEND_MODULES[self._topology.backend(node.spec).kind]
        return MODULES[node.role]

    def _plan_restart(self, child: Child, now: float) -> None:
        delay_s = child.backoff.ended(now - child.started_at)
        name, status = child.node.name, child.process.returncode
        is_hopeless = child.backoff.short_lives > GIVE_UP
        if is_hopeless and status > 0:  # one that was killed did not end by itself
            told = self._last_words(name)
            raise NodeFailed(f"{name} keeps ending (status {status}), the last time with:\n{told}")
        child.restart_at = now + delay_s
        log.warning("node ended", child=name, status=status)

    def _missing(self) -> set[str]:
        names = {child.node.name for child in self._children.values()}
        try:
            key = operator_name(self._topology.path)
            with Client(self._topology.path, connect_s=0.5, key=key) as client:
                status = client.status(2.0)
        except BrokerUnreachable:
            return names
        self._providers = {
            found["host"]: figure.removeprefix(PROVIDED)
            for found in status["nodes"]
            for figure in found["figures"]
            if found["role"] == "sandboxes" and figure.startswith(PROVIDED)
        }
        heard = {"broker", *(found["node"] for found in [*status["workers"], *status["nodes"]])}
        return names - heard

    def _stop_some(self, children: list[Child], patience_s: float) -> None:
        for child in children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience_s
        for child in children:
            if not ended_by(child.process, deadline):
                log.warning("node did not drain in time, killed", child=child.node.name)

    def _log_path(self, name: str) -> Path:
        return self._topology.run_dir / "logs" / f"{name}.log"

    def _last_words(self, name: str) -> str:
        lines = last_lines(self._log_path(name), LAST_WORDS)
        return "\n".join(f"  {name}: {line}" for line in lines)


def _write_address_book(topology: Topology) -> None:
    edges: Iterable[str] = BROKER_EDGES + (ROUTER_EDGES if topology.router else ())
    book = {
        "name": topology.name,
        "launcher_pid": os.getpid(),
        "endpoints": {edge: topology.endpoint(edge) for edge in edges},
    }
    text = orjson.dumps(book, option=orjson.OPT_INDENT_2)
    write_whole(topology.run_dir / "address.json", text, mode=0o600)
