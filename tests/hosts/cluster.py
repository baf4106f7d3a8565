"""A topology on three hosts of a network of namespaces, each with its own `rollmq up --host`.

Every socket is TCP with CURVE. The trainer has a machine of its own, `t`, and so have the hosts
`a` (the broker), `b` and `c`. Every process that is signalled was started here, or is a child of
one that was.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from engine import Client
from tests.chaos.scene import Scene, children, hit, named, until

from .net import Net

HERE = Path(__file__).parent
ROLLMQ = Path(sys.executable).with_name("rollmq")
START_S = 120.0
LEASE_S = 3.0
HOSTS = ("a", "b", "c")
TRAINER = "t"  # the machine that trains, which is no host of the topology
STAGES = [
    {"name": "run", "slots": 16, "workers": {"b": 1, "c": 1}, "timeout_s": 60},
    {"name": "eval", "slots": 16, "workers": {"b": 1, "c": 1}},
]
TIMES = {"heartbeat_s": 0.5, "lease_s": LEASE_S, "start_s": START_S, "drain_s": 5}


class Cluster(Scene):
    """The scene of chaos on many hosts: `launchers` instead of one launcher."""

    def __init__(self, directory: Path, net: Net, text: str | None = None, **topology: Any) -> None:
        """Write the topology of the keys given, or `text` with another section `hosts`."""
        topology = {"stages": STAGES, "keys": "keys", "durability": "process", **topology}
        topology["timeouts"] = {**TIMES, **topology.get("timeouts", {})}
        super().__init__(directory, **topology)
        if text is not None:
            self.topology.write_text(text)
        self.net = net
        self.write(hosts={host: {"address": net.address(host)} for host in HOSTS})
        self.launchers: dict[str, subprocess.Popen[bytes]] = {}
        self.rollmq("keys", "new", "keys", "--topology", "topology.yaml")
        self.rollmq("keys", "add", "keys", "trainer", "--role", "trainer")

    @property
    def environment(self) -> dict[str, str]:
        """What the processes see: the kinds of chaos, and of this directory."""
        found = super().environment
        return {**found, "PYTHONPATH": f"{found['PYTHONPATH']}{os.pathsep}{HERE}"}

    def rollmq(self, *words: str, host: str = TRAINER) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end on a machine."""
        with self.net.inside(host):
            done = subprocess.run(
                [ROLLMQ, *words],
                cwd=self.directory,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=START_S,
                check=False,
            )
        assert done.returncode in {0, 3}, done.stderr + done.stdout
        return done

    def start(self, host: str) -> None:
        """Start a host's launcher; `ready` waits for it."""
        with self._output(f"up-{host}").open("wb") as output, self.net.inside(host):
            self.launchers[host] = subprocess.Popen(
                [ROLLMQ, "up", "topology.yaml", "--host", host, "--wait-s", f"{START_S:g}"],
                cwd=self.directory,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def ready(self, *hosts: str) -> None:
        """Wait until these hosts say that they are ready."""
        for host in hosts:
            said = self._output(f"up-{host}")
            until(lambda: self._is_ready(host, said), f"host {host}", START_S)  # noqa: B023

    def _is_ready(self, host: str, said: Path) -> bool:
        assert self.launchers[host].poll() is None, said.read_text()
        return "ready: " in said.read_text()

    def up(self) -> None:
        """Start all hosts, those that wait for the broker first."""
        for host in reversed(HOSTS):
            self.start(host)
        self.ready(*HOSTS)

    def down(self, number: int = signal.SIGTERM) -> None:
        """Ask every host to drain, the broker's last, and wait for good ends."""
        for host in reversed(HOSTS):
            launcher = self.launchers.pop(host, None)
            if launcher is not None:
                launcher.send_signal(number)
                assert launcher.wait(START_S) == 0, self._output(f"up-{host}").read_text()

    def named(self, host: str) -> dict[str, int]:
        """Return the processes of a host's nodes by name."""
        return named(children(self.launchers[host].pid))

    def lose(self, host: str) -> None:
        """Kill a host's launcher and every process on it, as a power cut would."""
        launcher = self.launchers.pop(host)
        found = [launcher.pid]
        for pid in found:
            found += children(pid)
        for pid in found:
            hit(pid, signal.SIGKILL)
        launcher.wait(START_S)

    def abandon(self) -> None:
        """Kill what is left."""
        super().abandon()
        for host in list(self.launchers):
            self.lose(host)

    def start_life(self, program: str, **options: Any) -> "subprocess.Popen[bytes]":
        """Start the next life of a program on the trainer's machine."""
        with self.net.inside(TRAINER):
            return super().start_life(program, **options)

    def client(self, client_id: str | None = None, **options: Any) -> Client:
        """Return a client on the trainer's machine."""
        with self.net.inside(TRAINER):
            return super().client(client_id, **options)

    def status(self) -> dict[str, Any]:
        """Ask the broker how it is."""
        with self.client("observer", key="operator") as client:
            return client.status()

    def watch(self, seconds: float, look: Callable[[dict[str, Any]], None]) -> None:
        """Look at the status again and again for some seconds."""
        end = time.monotonic() + seconds
        with self.client("observer", key="operator") as client:
            while time.monotonic() < end:
                look(client.status())

    def write(self, **changes: Any) -> None:
        """Change keys of the topology's file."""
        document = yaml.safe_load(self.topology.read_text())
        self.topology.write_text(yaml.safe_dump({**document, **changes}))


def hold(seconds: float) -> None:
    """Let time pass that something is to outlast."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() >= end, f"{seconds:g} s to pass", seconds + 60.0)


@contextmanager
def cluster(directory: Path, **topology: Any) -> Iterator[Cluster]:
    """Run a topology on three hosts; it must drain well at the end."""
    with Net(*HOSTS, TRAINER) as net:
        found = Cluster(directory, net, **topology)
        try:
            found.up()
            yield found
            net.mend()
            found.down()
        finally:
            net.mend()
            found.abandon()
