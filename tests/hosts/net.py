"""Machines of a network, made of network namespaces: hosts on one switch, with faults on demand.

    with Net("a", "b", "c") as net:
        with net.inside("b"):              # this thread, and what it starts, is on host b
            subprocess.Popen(...)
        net.cut("b")                       # nothing in or out
        net.deafen("a", to="b")            # what a sends to b is lost; b's packets still arrive
        net.slow("c", kbit=8000)           # both ways
        net.mend()

Needs root and iproute2. The switch is a bridge in a namespace of its own, so nothing of this
machine's network is touched; everything that was made is removed at the end, by name.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

CLONE_NEWNET = 0x40000000
FORWARDING, DISABLED = 3, 0
QUEUE_MS = 400  # what a slow link holds back at the most
COMMAND_S = 60.0


def missing() -> str:
    """Return what this machine lacks for a network of namespaces; empty if nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    programs = [name for name in ("ip", "tc", "bridge") if shutil.which(name) is None]
    if programs:
        return f"network namespaces need iproute2: no {', '.join(programs)}"
    try:
        with Net("a"):
            return ""
    except subprocess.CalledProcessError as wrong:
        return f"this kernel makes no network of namespaces: {wrong.stderr.strip()}"


class Net:
    """Hosts by name, each at `address(host)`."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts
        self._prefix = f"rq{os.getpid()}-{os.urandom(2).hex()}"
        self._made: list[str] = []
        self._silenced: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        """Make the network. Raises: CalledProcessError."""
        try:
            self._make(self._switch)
            self._ip(self._switch, "link add br0 type bridge")
            self._ip(self._switch, "link set br0 up")
            for host in self.hosts:
                self._plug_in(host)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the network."""
        self.close()

    @property
    def _switch(self) -> str:
        return f"{self._prefix}-switch"

    def close(self) -> None:
        """Remove every namespace that was made; their links go with them."""
        while self._made:
            _run(["ip", "netns", "delete", self._made.pop()])

    def address(self, host: str) -> str:
        """Return a host's address."""
        return f"10.77.0.{self.hosts.index(host) + 1}"

    @contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Be on a host in this thread: sockets, threads and processes made here are there."""
        with Path("/proc/thread-self/ns/net").open("rb") as before:
            _enter(Path("/run/netns") / self._space(host))
            try:
                yield
            finally:
                _enter_descriptor(before.fileno())

    def cut(self, host: str) -> None:
        """Drop everything that comes from or goes to a host."""
        self._port(host, DISABLED)

    def deafen(self, host: str, *, to: str) -> None:
        """Drop what a host sends to another, and nothing else."""
        self._ip(self._space(host), f"route add blackhole {self.address(to)}")
        self._silenced.append((host, to))

    def slow(self, host: str, kbit: int) -> None:
        """Limit a host's link, both ways."""
        shape = f"root tbf rate {kbit}kbit burst 32kb latency {QUEUE_MS}ms"
        self._tc(self._space(host), f"qdisc replace dev eth0 {shape}")
        self._tc(self._switch, f"qdisc replace dev port-{host} {shape}")

    def mend(self) -> None:
        """End every cut, of either kind; slow links stay slow."""
        while self._silenced:
            host, to = self._silenced.pop()
            self._ip(self._space(host), f"route delete blackhole {self.address(to)}")
        for host in self.hosts:
            self._port(host, FORWARDING)

    def _plug_in(self, host: str) -> None:
        space = self._space(host)
        self._make(space)
        self._ip(self._switch, f"link add port-{host} type veth peer name eth0 netns {space}")
        self._ip(self._switch, f"link set port-{host} master br0 up")
        self._ip(space, f"address add {self.address(host)}/24 dev eth0")
        self._ip(space, "link set lo up")
        self._ip(space, "link set eth0 up")

    def _make(self, space: str) -> None:
        _run(["ip", "netns", "add", space])
        self._made.append(space)

    def _space(self, host: str) -> str:
        return f"{self._prefix}-{host}"

    def _port(self, host: str, state: int) -> None:
        words = f"link set dev port-{host} state {state}"
        _run(["bridge", "-n", self._switch, *words.split()])

    def _ip(self, space: str, words: str) -> None:
        _run(["ip", "-n", space, *words.split()])

    def _tc(self, space: str, words: str) -> None:
        _run(["tc", "-n", space, *words.split()])


def _run(words: list[str]) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=COMMAND_S)


def _enter(path: Path) -> None:
    with path.open("rb") as space:
        _enter_descriptor(space.fileno())


def _enter_descriptor(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":  # whether these tests can be run here
    sys.exit(missing() or 0)
