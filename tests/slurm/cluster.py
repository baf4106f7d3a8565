"""A real Slurm cluster of three nodes on this machine, of a test's own: munged, slurmctld, slurmd.

    with slurm_cluster(directory) as cluster:
        cluster.call("srun", "-N3", "hostname")

Nodes n1, n2 and n3 have the addresses 127.0.0.1, .2 and .3. Ports are free ones, files are in
`directory`, and every daemon is a child that is ended by its process id.
"""

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from nodes.sandboxes.enter import start_time

DEADLINE_S = 120.0
NODES = {"n1": "127.0.0.1", "n2": "127.0.0.2", "n3": "127.0.0.3"}
NODE_LOST_S = 10  # how long slurmctld waits for a slurmd; Slurm asks for more than 5
KILL_WAIT_S = 20  # from SIGTERM to SIGKILL, for jobs that are cancelled or requeued
CONFIGURATION = """\
ClusterName=rollmq
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
StateSaveLocation={directory}/controller
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/controller.pid
SlurmdPidFile={directory}/%n.pid
SlurmUser=root
SlurmdUser=root
ReturnToService=2
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=5
JobAcctGatherType=jobacct_gather/none
SlurmdTimeout={lost_s}
KillWait={kill_wait_s}
MessageTimeout=60
InactiveLimit=0
MinJobAge=600
MpiDefault=none
{nodes}
PartitionName=p Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Daemons by name: munged, slurmctld, and a slurmd for each of n1, n2 and n3."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.configuration = directory / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.configuration)}

    def call(self, *words: str, **options: object) -> str:
        """Return what a command of Slurm says. Raises: AssertionError with what it complains of."""
        done = subprocess.run(
            words,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
            **options,
        )
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start_node(self, name: str) -> None:
        self._start(name, "slurmd", "-D", "-N", name, "-f", str(self.configuration))

    def lose_node(self, name: str) -> None:
        """Kill a node's slurmd and every process of the steps on it at once, as a power cut would.

        All of them stand still before the first is killed: one that sees another end would tell
        slurmctld so. The youngest is killed first: the kernel wakes what stands still in a process
        group whose parent ends.
        """
        daemon = self.daemons.pop(name)
        os.kill(daemon.pid, signal.SIGSTOP)
        still: set[int] = set()
        while found := set(self.processes_of(name)) - still:
            for pid in found:
                _send(pid, signal.SIGSTOP)
            still |= found
        for pid in sorted(still, key=lambda pid: (start_time(pid), pid), reverse=True):
            _send(pid, signal.SIGKILL)
        daemon.kill()
        daemon.wait(DEADLINE_S)

    def processes_of(self, node: str) -> list[int]:
        """Return the processes of this cluster's steps on a node, their slurmstepd among them."""
        steps = {
            pid
            for pid, name, environment in self._others()
            if environment.get("SLURMD_NODENAME") == node or name == "slurmstepd"
        }
        marked = [
            pid
            for pid, _, environment in self._others()
            if environment.get("SLURMD_NODENAME") == node
        ]
        parents = {_parent(pid) for pid in marked} & steps
        return [*parents - set(marked), *marked]

    def _others(self) -> Iterator[tuple[int, str, dict[str, str]]]:
        mark = os.fsencode(f"SLURM_CONF={self.configuration}")
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
                name = (entry / "comm").read_text().strip()
            except OSError:
                continue
            if mark in words:
                pairs = (os.fsdecode(word).partition("=") for word in words)
                yield int(entry.name), name, {key: value for key, _, value in pairs}

    def _start(self, name: str, *words: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
            )

    def start(self) -> None:
        for name in ("controller", *(f"spool-{node}" for node in NODES)):
            (self.directory / name).mkdir(mode=0o755)
        self._write_configuration()
        self._start_munge()
        self._start("slurmctld", "slurmctld", "-D", "-c", "-f", str(self.configuration))
        for node in NODES:
            self.start_node(node)
        self.until(self._is_idle, "every node is idle")

    def node_states(self) -> dict[str, str]:
        """Return each node's state, such as IDLE or DOWN*; none before slurmctld answers."""
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%N %T"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return {words[0]: words[1].upper() for words in map(str.split, done.stdout.splitlines())}

    def job_state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING or COMPLETED."""
        said = self.call("scontrol", "--oneliner", "show", "job", job)
        return said.partition("JobState=")[2].split()[0]

    def make_whole(self) -> None:
        """End every job, start every node that was lost, and wait until all are idle."""
        subprocess.run(["scancel", "--user=root", "--quiet"], env=self.environment, check=False)
        for node in NODES.keys() - self.daemons:
            self.start_node(node)
        for node, state in self.node_states().items():
            if "DRAIN" in state:
                self.call("scontrol", "update", f"nodename={node}", "state=resume")
        self.until(self._is_idle, "every node is idle")

    def _is_idle(self) -> bool:
        return self.node_states() == dict.fromkeys(NODES, "IDLE")

    def until(
        self,
        holds: Callable[[], bool],
        what: str,
        deadline_s: float = DEADLINE_S,
        explain: Callable[[], str] | None = None,
    ) -> None:
        """Wait until something holds. Raises: AssertionError with the ends of the logs."""
        deadline = time.monotonic() + deadline_s
        while not holds():
            if time.monotonic() > deadline:
                told = (explain or self.last_words)()
                raise AssertionError(f"not within {deadline_s:g} s: {what}\n{told}")
            time.sleep(0.2)

    def last_words(self) -> str:
        logs = sorted(self.directory.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{_end_of(log)}" for log in logs)

    def stop(self) -> None:
        if "slurmctld" in self.daemons:
            subprocess.run(["scancel", "--user=root", "--quiet"], env=self.environment, check=False)
        for node in NODES:
            for pid in self.processes_of(node):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait(DEADLINE_S)

    def _write_configuration(self) -> None:
        host = socket.gethostname().partition(".")[0]
        controller, *ports = free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs=2 "
            "RealMemory=4000 State=UNKNOWN"
            for (name, address), port in zip(NODES.items(), ports, strict=True)
        )
        text = CONFIGURATION.format(
            host=host,
            controller=controller,
            directory=self.directory,
            nodes=nodes,
            lost_s=NODE_LOST_S,
            kill_wait_s=KILL_WAIT_S,
        )
        self.configuration.write_text(text)

    def _start_munge(self) -> None:
        key = self.directory / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        files = {"socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "munged"}
        places = [f"--{option}={self.directory}/munge.{end}" for option, end in files.items()]
        self._start("munged", "munged", "--foreground", "--force", f"--key-file={key}", *places)
        self.until((self.directory / "munge.socket").exists, "munged listens")


@contextmanager
def slurm_cluster(directory: Path) -> Iterator[Cluster]:
    """Start a cluster in a directory and end it. Raises: AssertionError if it does not come up."""
    cluster = Cluster(directory)
    with ExitStack() as stack:
        stack.callback(cluster.stop)
        cluster.start()
        yield cluster


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _parent(pid: int) -> int:
    try:
        status = (Path("/proc") / str(pid) / "status").read_text()
    except OSError:
        return 0
    return int(status.partition("PPid:")[2].split()[0])


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]
