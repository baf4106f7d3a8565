"""What Slurm says of the allocation that this process runs in.

Job: ask `scontrol` for the allocation's nodes, their addresses and states, and read its answers.
Does not know: topologies.
Invariants: commands are lists, never a shell's; every one has a deadline. A node counts as up only
if Slurm names a state in which it runs steps, and hears it.
"""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from ..errors import NodeFailed

ANSWER_S = 90.0  # Slurm itself gives up after its MessageTimeout, and says so
RUNS_STEPS = {"IDLE", "ALLOCATED", "MIXED", "COMPLETING"}
LOST = {"DOWN", "NOT_RESPONDING", "POWERED_DOWN", "POWERING_DOWN", "REBOOT_ISSUED", "INVALID_REG"}
_FIELD = re.compile(r"(?:^|\s)(\w+)=(\S*)")


@dataclass(frozen=True, slots=True)
class SlurmNode:
    """A machine of the cluster: `address` as Slurm has it, an IP address or a name."""

    name: str
    address: str
    is_up: bool


@dataclass(frozen=True, slots=True)
class Allocation:
    """A job's machines as they were when it began; `here` is the one of this process, if any."""

    job_id: str
    nodes: tuple[SlurmNode, ...]
    here: str
    restarts: int

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Self:
        """Return the allocation that an environment names.

        Raises: NodeFailed if it names none, or if Slurm does not answer.
        """
        job_id, names = environment.get("SLURM_JOB_ID"), environment.get("SLURM_JOB_NODELIST")
        if not (job_id and names):
            raise NodeFailed(
                "not inside a Slurm allocation (SLURM_JOB_ID is not set): use `rollmq submit "
                "slurm`, or salloc first"
            )
        nodes = nodes_of(job_id)
        if not nodes:
            raise NodeFailed(f"Slurm knows no node of job {job_id}")
        here = environment.get("SLURMD_NODENAME", "")
        return cls(job_id, nodes, here, int(environment.get("SLURM_RESTART_COUNT") or 0))


def nodes_of(job_id: str) -> tuple[SlurmNode, ...]:
    """Return the nodes that a job has now, in the allocation's order; lost ones may be gone.

    Raises: NodeFailed if Slurm does not answer.
    """
    names = node_list(ask("scontrol", "--oneliner", "show", "job", job_id))
    if not names:
        return ()
    order = ask("scontrol", "show", "hostnames", names).split()
    found = {
        node.name: node for node in read_nodes(ask("scontrol", "--oneliner", "show", "node", names))
    }
    return tuple(found[name] for name in order if name in found)


def node_list(job: str) -> str:
    """Return the NodeList of a line of `scontrol show job`; empty if it has none."""
    found = _fields(job).get("NodeList", "")
    return "" if found == "(null)" else found


def read_nodes(lines: str) -> list[SlurmNode]:
    """Read the lines of `scontrol --oneliner show node`."""
    rows = (_fields(line) for line in lines.splitlines() if line.strip())
    return [
        SlurmNode(row["NodeName"], row.get("NodeAddr", row["NodeName"]), runs_steps(row["State"]))
        for row in rows
    ]


def _fields(line: str) -> dict[str, str]:
    return {found[1]: found[2] for found in _FIELD.finditer(line)}


def runs_steps(state: str) -> bool:
    """Return whether a node in this state, such as MIXED+DRAIN or DOWN*, takes steps now."""
    words = state.rstrip("*~#!%$@^-").split("+")
    return "*" not in state and words[0] in RUNS_STEPS and not LOST.intersection(words)


def addresses(nodes: Sequence[SlurmNode], here: str) -> dict[str, str]:
    """Return the IP address of each node.

    Where this machine's own name means loopback to it, as Debian has it in /etc/hosts, its address
    is the one from which it reaches the others.

    Raises: NodeFailed if a name has no address.
    """
    found = {node.name: _resolved(node.address) for node in nodes}
    others = [found[node.name] for node in nodes if node.name != here]
    named = {node.name: node.address for node in nodes}.get(here, "")
    if here in found and others and found[here] != named and ip_address(found[here]).is_loopback:
        found[here] = _own_address(others[0])
    return found


def ask(*words: str) -> str:
    """Return what a command of Slurm answers.

    Raises: NodeFailed if it is not installed, fails, or does not answer in time.
    """
    expect_program(words[0])
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=False,
            env=os.environ,
        )
    except subprocess.TimeoutExpired:
        raise NodeFailed(f"{words[0]} did not answer within {ANSWER_S:g} s") from None
    if done.returncode != 0:
        raise NodeFailed(f"{' '.join(words[:3])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def expect_program(name: str) -> None:
    """Raise NodeFailed if a program of Slurm is not there."""
    if shutil.which(name) is None:
        raise NodeFailed(f"{name} is not installed here: this needs a machine of a Slurm cluster")


def _resolved(address: str) -> str:
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError as wrong:
        raise NodeFailed(f"no address for the node {address}: {wrong}") from None
    return str(found[0][4][0])


def _own_address(other: str) -> str:
    family = socket.AF_INET6 if ":" in other else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # a datagram socket only chooses its route: nothing is sent
        return str(probe.getsockname()[0])
