"""Keeps a topology up on the nodes of an allocation: one step for each of its hosts.

    allocation = Allocation.of_environment(os.environ)
    with SlurmLauncher(topology, allocation, Path("/tmp"), say) as launcher:
        launcher.wait_ready(60.0)
        while ...:
            launcher.watch()

Job: start a host's step with `srun`, start it again where it can run, say what is missing, drain.
Does not know: what a host runs.
Invariants: a step is ended by the end of its standard input, which carries a beat until then, and
only its own `srun` is ever signalled. The broker's host is started first and drained last. A host
that is nowhere is looked after until the end; one that the topology cannot do without ends it with
`Requeue`.
"""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from ..client.viewer import Viewer
from ..errors import BrokerUnreachable, NodeFailed
from ..files import write_whole
from ..process import PARENT, Backoff, ended_by, last_lines
from ..sockets import private_directory
from ..supervisor import PROVIDED
from ..topology import BROKER_EDGES, Topology, load
from .allocation import Allocation, addresses, expect_program, nodes_of
from .host import drain_s
from .journals import read_record
from .placing import needs, next_node, place, stays
from .resolving import resolve

LOOK_S = 2.0  # between two looks at nodes while a host is nowhere
ASK_AGAIN_S = 15.0  # the same after Slurm did not answer
KEEP_S = 30.0  # what copying a journal may take beside the drain
END_S = 40.0  # what Slurm may take to end a step
STATUS_S = 2.0  # for the broker to say how it is
POLL_S = 0.1
LAST_WORDS = 12
GIVE_UP = 8  # short lives in a row, on a node that is up, after which the run is over
OPTIONS = (
    "--overlap",
    "--nodes=1",
    "--ntasks=1",
    "--no-kill",
    "--cpu-bind=none",
    "--export=ALL",
    "--wait=0",
)


class Requeue(NodeFailed):
    """A node is lost without which the topology cannot go on: it has to begin elsewhere."""


def step_backoff() -> Backoff:
    """Return how often a host's step is started again."""
    return Backoff(short_s=60.0, first_s=1.0, most_s=15.0)


@dataclass(slots=True, eq=False)
class Step:
    """One host's step over its restarts; while `srun` is None it waits for its next start."""

    host: str
    srun: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    start_at: float = 0.0
    backoff: Backoff = field(default_factory=step_backoff)
    restarts: int = 0


class SlurmLauncher:
    """Runs a topology's hosts on an allocation's nodes.

    local: a directory that every node has on a disk of its own. say: takes a sentence for people.

    Raises: NodeFailed if the allocation is too small, or Slurm does not answer; TopologyError if
    the topology does not suit the nodes' addresses.
    """

    def __init__(
        self, topology: Topology, allocation: Allocation, local: Path, say: Callable[[str], None]
    ) -> None:
        expect_program("srun")
        self._asked = topology
        self._job_id = allocation.job_id
        self._say = say
        self.directory = topology.run_dir / f"slurm-{allocation.job_id}"
        private_directory(topology.run_dir)
        private_directory(self.directory)
        mark = sha256(os.fsencode(self.directory)).hexdigest()[:8]
        self._local = local / f"rollmq-{allocation.job_id}-{mark}"
        self._address_of = addresses(allocation.nodes, allocation.here)
        hosts = [host.name for host in topology.hosts]
        first = journal_node(self.directory, self._address_of) or allocation.here
        self._placed = place(hosts, topology.broker.host, list(self._address_of), first)
        self._write_files()
        self.topology = load(self._file(topology.broker.host))
        hosts.sort(key=lambda host: host != topology.broker.host)
        self._steps = {host: Step(host) for host in hosts}
        self._nowhere: dict[str, float] = {}
        self._look_at = 0.0
        self._beat_at = 0.0
        self.sandboxes: dict[str, str] = {}
        self.is_stopping = False

    def __enter__(self) -> Self:
        """Start every host's step. Raises: OSError."""
        try:
            for step in self._steps.values():
                self._say(f"host {step.host} is node {self._placed[step.host]}")
                self._start(step)
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
        """Drain and end every step."""
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each host's `srun` now."""
        return {step.host: step.srun.pid for step in self._steps.values() if step.srun is not None}

    @property
    def restarts(self) -> dict[str, int]:
        """How often each host was started again."""
        return {step.host: step.restarts for step in self._steps.values() if step.restarts}

    def watch(self) -> None:
        """Start again what has ended; call it often.

        Raises: Requeue if the topology cannot go on without a host that is lost; NodeFailed if a
        host's launcher keeps ending right after its start.
        """
        now = time.monotonic()
        self._beat(now)
        for step in self._steps.values():
            if step.srun is not None and step.srun.poll() is not None:
                self._plan_restart(step, now)
        due = [step for step in self._steps.values() if step.srun is None and now >= step.start_at]
        if due and now >= self._look_at:
            self._look_at = now + LOOK_S
            self._restart_all(due, now)

    def wait_ready(self, deadline_s: float) -> None:
        """Wait until every node of the topology has said hello to the broker.

        Raises: NodeFailed naming those that did not, and as `watch`.
        """
        deadline = time.monotonic() + deadline_s
        missing: set[str] = set()
        while time.monotonic() < deadline:
            self.watch()
            missing = self._missing()
            if not missing:
                return
            time.sleep(POLL_S)
        told = "\n".join(map(self._last_words, self._steps))
        raise NodeFailed(f"not ready after {deadline_s:g} s: {', '.join(sorted(missing))}\n{told}")

    def stop(self) -> None:
        """Drain the hosts, the broker's last; then make sure."""
        self.is_stopping = True
        last = self._asked.broker.host
        self._stop_some([step for step in self._steps.values() if step.host != last])
        self._stop_some([self._steps[last]])

    def _file(self, host: str) -> Path:
        return self.directory / f"{host}.yaml"

    def _log(self, host: str) -> Path:
        return self.directory / f"{host}.log"

    def _write_files(self) -> None:
        """Write the file of each host, and where to connect."""
        of_host = {host: self._address_of[node] for host, node in self._placed.items()}
        for host in self._placed:
            text = resolve(self._asked, of_host, self._local / host)
            write_whole(self._file(host), text.encode(), mode=0o600)
        found = load(self._file(self._asked.broker.host))
        book = {
            "name": found.name,
            "job_id": self._job_id,
            "topology": str(found.path),
            "endpoints": {edge: found.endpoint(edge) for edge in BROKER_EDGES},
            "hosts": self._placed,
        }
        shown = orjson.dumps(book, option=orjson.OPT_INDENT_2)
        write_whole(self.directory / "address.json", shown, mode=0o600)

    def _start(self, step: Step) -> None:
        module: list[str | Path] = [sys.executable, "-m", "engine.slurm.host"]
        module += ["--topology", self._file(step.host), "--host", step.host]
        module += ["--shared", self.directory]
        where = (f"--nodelist={self._placed[step.host]}", f"--job-name={step.host}")
        command = ["srun", *OPTIONS, *where, *map(str, module)]
        environment = {key: value for key, value in os.environ.items() if key != PARENT}
        with self._log(step.host).open("ab") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            step.srun = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                process_group=0,
            )
        assert step.srun.stdin is not None
        os.set_blocking(step.srun.stdin.fileno(), False)
        step.started_at = time.monotonic()

    def _plan_restart(self, step: Step, now: float) -> None:
        assert step.srun is not None
        status = step.srun.returncode
        _close(step.srun)
        step.srun = None
        step.start_at = now + step.backoff.ended(now - step.started_at)
        self._say(f"host {step.host}: its step on {self._placed[step.host]} ended ({status})")

    def _restart_all(self, due: list[Step], now: float) -> None:
        try:
            up = {node.name for node in nodes_of(self._job_id) if node.is_up}
        except NodeFailed as wrong:  # a controller that restarts does not end the run
            self._say(f"{wrong}; a host waits for it, asking again in {ASK_AGAIN_S:g} s")
            self._look_at = now + ASK_AGAIN_S
            return
        for step in due:
            self._restart(step, up, now)
        self._expect_enough(now)

    def _restart(self, step: Step, up: set[str], now: float) -> None:
        host, before = step.host, self._placed[step.host]
        node = next_node(host, self._placed, list(self._address_of), up)
        if node is None or (node != before and stays(self._asked, host)):
            self._miss(host, before, now)
            return
        if node != before:
            self._say(f"host {host}: {before} is lost, {node} replaces it")
            self._placed[host] = node
            self._write_files()
            step.backoff = step_backoff()
        elif step.backoff.short_lives > GIVE_UP:
            raise NodeFailed(f"host {host} keeps ending on {node}:\n{self._last_words(host)}")
        if self._nowhere.pop(host, None) is not None:
            self._say(f"host {host} is back on {node}")
        step.restarts += 1
        self._start(step)

    def _miss(self, host: str, node: str, now: float) -> None:
        if host in self._nowhere:
            return
        self._nowhere[host] = now
        why = needs(self._asked, set(self._nowhere))
        then = f"waiting for it, because {why}" if why else "on without it"
        self._say(f"host {host}: {node} is lost and nothing replaces it: {then}")

    def _expect_enough(self, now: float) -> None:
        """Raise Requeue if hosts are lost for long that the topology cannot go on without."""
        patience_s = self._asked.timeouts.start_s
        lost = {host for host, since in self._nowhere.items() if now - since > patience_s}
        why = needs(self._asked, lost)
        if why:
            raise Requeue(f"lost for {patience_s:g} s: host {', '.join(sorted(lost))}; {why}")

    def _missing(self) -> set[str]:
        names = {node.name for node in self.topology.nodes()}
        try:
            with Viewer.at(self.topology.path) as viewer:
                status = viewer.look(STATUS_S)
        except BrokerUnreachable:
            return names
        self.sandboxes = {
            found["host"]: figure.removeprefix(PROVIDED)
            for found in status["nodes"]
            for figure in found["figures"]
            if found["role"] == "sandboxes" and figure.startswith(PROVIDED)
        }
        heard = {"broker", *(found["node"] for found in [*status["workers"], *status["nodes"]])}
        return names - heard

    def _stop_some(self, steps: list[Step]) -> None:
        running = [step.srun for step in steps if step.srun is not None]
        for srun in running:
            _close(srun)
        deadline = time.monotonic() + drain_s(self._asked) + KEEP_S
        while any(srun.poll() is None for srun in running) and time.monotonic() < deadline:
            self._beat(time.monotonic())
            time.sleep(POLL_S)
        for srun in running:
            if srun.poll() is None:
                self._say("a host did not drain in time: its step is ended")
                srun.terminate()  # which makes srun end the step
                ended_by(srun, time.monotonic() + END_S)
        for step in steps:
            step.srun = None

    def _beat(self, now: float) -> None:
        """Let every host hear that its launcher is there."""
        if now < self._beat_at:
            return
        self._beat_at = now + self._asked.timeouts.heartbeat_s
        for step in self._steps.values():
            if step.srun is not None and step.srun.stdin is not None and not step.srun.stdin.closed:
                with contextlib.suppress(BrokenPipeError, BlockingIOError):
                    os.write(step.srun.stdin.fileno(), b".")

    def _last_words(self, host: str) -> str:
        lines = last_lines(self._log(host), LAST_WORDS)
        return "\n".join(f"  {host}: {line}" for line in lines)


def journal_node(directory: Path, nodes: Iterable[str]) -> str | None:
    """Return the node whose disk has a job's journal, if it is one of these."""
    record = read_record(directory)
    return record.node if record is not None and not record.kept and record.node in nodes else None


def _close(srun: "subprocess.Popen[bytes]") -> None:
    """End a step's standard input, which asks it to drain."""
    if srun.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            srun.stdin.close()
