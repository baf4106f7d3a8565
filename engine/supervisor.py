"""The launcher: starts the nodes of a topology on this machine, keeps them up, drains them.

Job: start what belongs to a host (or to all of them), tell the broker what it goes by, and go by
whatever newer topology the broker answers with: start what is new, drain what is gone, have the
rest read its file again or replace it, one at a time.
Does not know: what nodes do, or what may change (`topology.plan` does).
Invariants: every node is a child that dies with the launcher (the kernel sees to it), writes its
log to `<run_dir>/logs/<node>.log` and reads its topology from a file of its own,
`<run_dir>/nodes/<node>.yaml`, which is written before it is started or told to read it. A lock for
each host keeps a second launcher of it out of a run directory.
"""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import orjson
import zmq

from .children import Children
from .errors import NodeFailed, TopologyError
from .files import write_whole
from .logs import get_logger
from .messages import LauncherReply, Part
from .presence import Presence
from .process import last_lines, spawn
from .sockets import boot_id, private_directory
from .topology import (
    BROKER_EDGES,
    ROUTER_EDGES,
    Applied,
    Node,
    Topology,
    merged,
    must_replace,
    resolved_yaml,
)
from .topology.applied import begin, read, write_node_file

log = get_logger()
MODULES = {
    "broker": "nodes.broker",
    "router": "nodes.router",
    "sandboxes": "nodes.sandboxes",
    "metrics": "nodes.metrics",
    "worker": "nodes.stage",
}
BACKEND_MODULES = {"simulator": "nodes.backends.simulator", "vllm": "nodes.backends.vllm"}
PROVIDED = "by_"  # before a provider's name in the figures of who keeps sandboxes
LAST_WORDS = 12  # lines of a node's log that its failure quotes
SETTLE_S = 3.0  # between a node's replacement and the next one
LOOK_S = 0.05  # between two hellos while the broker's answer is waited for


class Supervisor:
    """Runs the nodes of one host of a topology, or of all.

    Raises: NodeFailed if another launcher has the run directory; KeyError for an unknown host.
    """

    def __init__(self, topology: Topology, host: str | None = None) -> None:
        self._topology = topology
        self._host = host
        self._children = Children(self._spawn, self._last_words)
        self._locks: list[IO[str]] = []
        self._providers: dict[str, str] = {}
        self._seen = Applied(0, "")  # what the broker sent last
        self._to_replace: list[str] = []
        self._changed_at = 0.0  # when a node was last on its way out or back
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._presence: Presence | None = None
        self._heard: dict[str, Part] | None = None  # by the broker; None: it has not answered
        self._is_waiting = False
        self._keepers: list[str] = []  # to be stopped once the workers of their hosts are gone

    def __enter__(self) -> Self:
        """Start every node.

        Raises: NodeFailed.
        """
        nodes = self._topology.nodes(self._host)
        private_directory(self._topology.run_dir)
        self._take_locks()
        try:
            self._start(nodes)
        except BaseException:
            self.stop()
            raise
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
        return {each.node.name: each.restarts for each in self._children if each.restarts}

    @property
    def pids(self) -> dict[str, int]:
        """The nodes' process ids now."""
        return {each.node.name: each.process.pid for each in self._children}

    @property
    def sandboxes(self) -> dict[str, str]:
        """Which provider makes the sandboxes of each host, as their keepers said when ready."""
        return dict(self._providers)

    def watch(self) -> None:
        """Restart what has ended, and go by what was applied; call it often.

        Raises: NodeFailed if a node keeps ending right after its start.
        """
        now = time.monotonic()
        self._children.watch(now, self._topology)
        self._replace_next(now)
        self._stop_keepers(now)
        assert self._presence is not None
        self._presence.beat(now, self._figures(), self._parts())
        while self._presence.told:
            self._told(*self._presence.told.popleft(), now)

    def wait_ready(self, deadline_s: float, given_up: Callable[[], bool] = lambda: False) -> None:
        """Wait until every node has said hello to the broker, or the wait was given up.

        Raises: NodeFailed naming the nodes that did not, with the end of their logs, or the broker
        if nothing was heard of it.
        """
        deadline = time.monotonic() + deadline_s
        self._is_waiting, self._heard = True, None
        while (missing := self._missing()) and not given_up():
            if time.monotonic() > deadline:
                raise NodeFailed(self._why_not(missing, deadline_s))
            assert self._presence is not None
            self._presence.hurry()
            self.watch()
            time.sleep(LOOK_S)
        self._is_waiting = False

    def stop(self) -> None:
        """Drain: workers first, then what they use, the broker last; then make sure."""
        patience_s = self._topology.timeouts.drain_s
        for roles in (("worker",), ("backend", "router", "sandboxes", "metrics"), ("broker",)):
            self._children.stop_some(roles, patience_s)
        if self._context is not None:
            self._context.destroy(linger=0)
            self._presence = self._context = None
        while self._locks:
            self._locks.pop().close()

    def _start(self, nodes: Iterable[Node]) -> None:
        _write_address_book(self._topology, self._host or "")
        if any(node.role == "broker" for node in nodes):
            begin(self._topology)
        self._appear()
        self._write_files(nodes)
        now = time.monotonic()
        for node in nodes:
            self._children.start(node, self._topology, now)

    def _take_locks(self) -> None:
        """Take the lock of each host; the locks of all hosts are one after another."""
        hosts = [self._host] if self._host else sorted(host.name for host in self._topology.hosts)
        try:
            for host in hosts:
                self._locks.append(_lock(self._topology.run_dir, host))
        except NodeFailed:
            while self._locks:
                self._locks.pop().close()
            raise

    def _appear(self) -> None:
        home = self._host or self._topology.broker.host
        name = f"launcher.{home}"
        self._context = zmq.Context()
        boot = boot_id(name)
        self._presence = Presence(self._context, self._topology, name, boot, "launcher", home)

    def _figures(self) -> dict[str, float]:
        return {
            "revision": float(self._seen.revision),
            "mark": float(self._seen.mark) if self._seen.text else 0.0,
            "nodes": float(len(self._children)),
            "restarts": float(sum(child.restarts for child in self._children)),
            "changing": float(len(self._children.changing) + len(self._to_replace)),
            **({"waiting": 1.0} if self._is_waiting else {}),
        }

    def _parts(self) -> tuple[Part, ...]:
        return tuple(Part(name, "ending", {}) for name in self._children.changing)

    def _told(self, reply: LauncherReply, text: str | None, now: float) -> None:
        """Take the broker's answer to a hello."""
        if self._is_waiting:
            self._heard = {part.name: part for part in reply.heard}
            self._providers = _providers(reply.heard, self._nodes())
        if text is not None:
            self._go_by(Applied(reply.revision, text), now)

    def _go_by(self, applied: Applied, now: float) -> None:
        """Change what runs here into what the broker says; what is wrong with it is logged."""
        if applied.mark == self._seen.mark:
            return
        self._seen = applied
        assert self._presence is not None
        self._presence.hurry()
        try:
            wanted = merged(self._topology, read(applied, self._topology))
        except TopologyError as wrong:
            log.critical("the broker's topology does not fit here", error=str(wrong))
            return
        if wanted != self._topology:
            log.warning("topology changes", revision=applied.revision)
            self._topology = wanted
            self._change(now)

    def _change(self, now: float) -> None:
        nodes = self._nodes()
        self._leave_out({node.name for node in nodes}, now)
        self._to_replace = []
        self._write_files(nodes)
        for node in nodes:
            found = self._children.get(node.name)
            if found is None or found.kill_at is not None:
                self._children.start(node, self._topology, now)
            elif must_replace(node, found.started, self._topology):
                self._to_replace.append(node.name)
            elif node.role != "broker":
                self._children.hang_up(node.name)

    def _leave_out(self, stay: set[str], now: float) -> None:
        self._keepers = []
        for child in list(self._children):
            if child.node.name in stay:
                continue
            if child.node.role == "sandboxes":
                self._keepers.append(child.node.name)
            else:
                self._children.stop(child.node.name, self._topology.timeouts.drain_s, now)

    def _stop_keepers(self, now: float) -> None:
        """Stop the keepers that are not wanted once their workers, which use them, are gone."""
        for name in list(self._keepers):
            keeper = self._children.get(name)
            host = keeper.node.host if keeper else ""
            if any(
                each.node.role == "worker" and each.node.host == host for each in self._children
            ):
                continue
            self._keepers.remove(name)
            if keeper is not None:
                self._children.stop(name, self._topology.timeouts.drain_s, now)

    def _replace_next(self, now: float) -> None:
        """Drain the next node that has to be replaced, a while after the one before came back."""
        if self._children.changing:
            self._changed_at = now
        elif self._to_replace and now >= self._changed_at + SETTLE_S:
            child = self._children.get(self._to_replace.pop(0))
            if child is not None and must_replace(child.node, child.started, self._topology):
                child.started = self._topology
                patience_s = self._topology.timeouts.drain_s
                self._children.stop(child.node.name, patience_s, now, comes_back=True)

    def _nodes(self) -> tuple[Node, ...]:
        if self._host is None:
            return self._topology.nodes()
        known = {host.name for host in self._topology.hosts}
        return self._topology.nodes(self._host) if self._host in known else ()

    def _write_files(self, nodes: Iterable[Node]) -> None:
        text = resolved_yaml(self._topology)
        for node in nodes:
            write_node_file(self._topology, node.name, text)

    def _spawn(self, node: Node) -> "subprocess.Popen[bytes]":
        file = self._topology.run_dir / "nodes" / f"{node.name}.yaml"
        command = [sys.executable, "-m", self._module(node), "--topology", str(file)]
        if node.role != "broker":
            command += ["--name", node.name]
        return spawn(command, self._log_path(node.name))

    def _module(self, node: Node) -> str:
        if node.role == "backend":
            return BACKEND_MODULES[self._topology.backend(node.spec).kind]
        return MODULES[node.role]

    def _wanted(self) -> set[str]:
        return {node.name for node in self._nodes()}

    def _missing(self) -> set[str]:
        if self._heard is None:
            return self._wanted() or {"broker"}
        return self._wanted() - {"broker", *self._heard}

    def _why_not(self, missing: set[str], deadline_s: float) -> str:
        if self._heard is None and "broker" not in missing:
            return self._no_broker(deadline_s)
        told = "\n".join(self._last_words(name) for name in sorted(missing))
        return f"not ready after {deadline_s:g} s: {', '.join(sorted(missing))}\n{told}"

    def _no_broker(self, deadline_s: float) -> str:
        topology, broker = self._topology, self._topology.broker.host
        return (
            f"the broker on host {broker!r} has not answered for {deadline_s:g} s at "
            f"{topology.endpoint('control')}, where a hello was said several times a second; "
            f"start it with `rollmq up {topology.path.name} --host {broker}`, before or after "
            f"this host, or wait longer with --wait-s"
        )

    def _log_path(self, name: str) -> Path:
        return self._topology.run_dir / "logs" / f"{name}.log"

    def _last_words(self, name: str) -> str:
        path = self._log_path(name)
        lines = last_lines(path, LAST_WORDS) if path.exists() else []
        return "\n".join(f"  {name}: {line}" for line in lines)


def _providers(heard: Iterable[Part], nodes: Iterable[Node]) -> dict[str, str]:
    figures = {part.name: part.figures for part in heard}
    return {
        node.host: figure.removeprefix(PROVIDED)
        for node in nodes
        for figure in figures.get(node.name, ())
        if figure.startswith(PROVIDED)
    }


def _lock(run_dir: Path, host: str) -> IO[str]:
    lock = (run_dir / f"lock-{host}").open("a+", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise NodeFailed(
            f"{run_dir} is in use for host {host!r} by the launcher with process id {holder}"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _write_address_book(topology: Topology, host: str) -> None:
    """Write the book whole, from a draft of this host's own: others may write theirs now."""
    edges: Iterable[str] = BROKER_EDGES + (ROUTER_EDGES if topology.router else ())
    book = {
        "name": topology.name,
        "launcher_pid": os.getpid(),
        "endpoints": {edge: topology.endpoint(edge) for edge in edges},
    }
    text = orjson.dumps(book, option=orjson.OPT_INDENT_2)
    draft = topology.run_dir / f"address-{host}.json"
    write_whole(draft, text, mode=0o600)
    draft.replace(topology.run_dir / "address.json")
