"""A topology in processes of its own, a trainer beside it, and the means to hurt them.

Every process that is signalled here was found as a child of the launcher that the scene started.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from engine import Client, Task

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
PATIENCE_S = 60.0

T = TypeVar("T")


def until(found: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
    """Return what `found` returns as soon as it is true."""
    deadline = time.monotonic() + patience_s
    while not (value := found()):
        assert time.monotonic() < deadline, f"waited {patience_s:g} s for {what}"
        time.sleep(0.02)
    return value


def children(pid: int) -> list[int]:
    """Return the processes that a process has started; none if it is gone."""
    try:
        lists = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
        return [int(word) for file in lists for word in file.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def command(pid: int) -> list[str]:
    """Return a process's arguments; none if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def hit(pid: int, number: int) -> None:
    """Signal a process that may have ended by itself."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


class Scene:
    """One topology in a directory; `up` starts it, as often as wanted."""

    def __init__(self, directory: Path, **topology: Any) -> None:
        self.directory = directory
        self.counts = directory / "executions"
        self.topology = directory / "topology.yaml"
        timeouts = {"heartbeat_s": 0.4, "lease_s": 2.0, "retry_delay_s": 0.1, "cancel_grace_s": 1}
        document = {"version": 1, "name": "chaos", "run_dir": "run", "log_level": "info"}
        timeouts |= topology.pop("timeouts", {})
        self.topology.write_text(yaml.safe_dump({**document, "timeouts": timeouts, **topology}))
        self.launcher: subprocess.Popen[str] | None = None
        self._trainers: list[subprocess.Popen[bytes]] = []
        self.logs: list[Path] = []

    def up(self) -> None:
        """Start the launcher and wait until every node is there."""
        with self._output("launcher").open("ab") as errors:
            self.launcher = subprocess.Popen(
                [sys.executable, HERE / "launcher.py", self.topology],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self.environment,
                text=True,
                start_new_session=True,
            )
        assert self.launcher.stdout is not None
        said = self.launcher.stdout.readline()
        assert said == "ready\n", self._output("launcher").read_text()

    def down(self, number: int = signal.SIGTERM) -> None:
        """Ask the launcher to drain, and wait for its good end."""
        assert self.launcher is not None
        self.launcher.send_signal(number)
        status = self.launcher.wait(PATIENCE_S)
        self.launcher.stdout.close()  # type: ignore[union-attr]
        self.launcher = None
        assert status == 0, self._output("launcher").read_text()

    def kill_launcher(self) -> None:
        """Kill the launcher; the kernel ends its nodes."""
        assert self.launcher is not None
        everyone = self.everyone()
        self.launcher.kill()
        self.launcher.wait(PATIENCE_S)
        self.launcher.stdout.close()  # type: ignore[union-attr]
        self.launcher = None
        until(lambda: not any(map(is_alive, everyone)), "the launcher's nodes to be gone")

    def abandon(self) -> None:
        """Kill what is left; the kernel ends the nodes of a launcher that is gone."""
        for process in [*self._trainers, *([self.launcher] if self.launcher else [])]:
            hit(process.pid, signal.SIGCONT)
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE_S)
            if process.stdout is not None:
                process.stdout.close()

    @property
    def environment(self) -> dict[str, str]:
        """What the scene's processes see: this repository, and the task kinds of chaos."""
        return {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{HERE}"}

    @property
    def nodes(self) -> dict[str, int]:
        """The nodes' process ids now, by name."""
        assert self.launcher is not None
        return named(children(self.launcher.pid))

    def node(self, name: str) -> int:
        """Return a node's process id, waiting for it to be started."""
        return until(lambda: self.nodes.get(name), f"the process of {name}")

    def host(self, name: str) -> int:
        """Return the process that runs a worker's handlers, waiting for it to be started."""
        return until(lambda: next(iter(self._hosts(name)), None), f"the host of {name}")

    def everyone(self) -> list[int]:
        """Return the processes of the topology, the launcher first."""
        assert self.launcher is not None
        found = [self.launcher.pid]
        for pid in found:
            found += children(pid)
        return found

    def _hosts(self, name: str) -> list[int]:
        guardian = self.nodes.get(name)
        return [] if guardian is None else children(guardian)

    def client(self, client_id: str | None = None, **options: Any) -> Client:
        """Return a client of this process."""
        return Client(self.topology, client_id, connect_s=30.0, **options)

    def status(self) -> dict[str, Any]:
        """Ask the broker how it is."""
        with self.client("observer") as client:
            return client.status()

    def task(self, name: str, kind: str = "sleeper", **payload: Any) -> Task:
        """Return a task of a kind of chaos, whose executions are counted."""
        return Task(name, f"chaoskinds.{kind}", {"counts": str(self.counts), **payload})

    def start_trainer(self, rollouts: int, **options: Any) -> subprocess.Popen[bytes]:
        """Start the next life of the trainer; further options are its command line's."""
        return self.start_life("trainer.py", rollouts=rollouts, **options)

    def start_life(self, program: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start the next life of a program that trains; options are its command line's."""
        log = self.directory / f"life-{len(self.logs)}.jsonl"
        payload = json.dumps({"counts": str(self.counts), **options.pop("payload", {})})
        arguments = {"topology": self.topology, "log": log, **options}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]
        with self._output("trainer").open("ab") as output:
            trainer = subprocess.Popen(
                [sys.executable, HERE / program, *flags, f"--payload={payload}"],
                stdout=output,
                stderr=output,
                env=self.environment,
            )
        self._trainers.append(trainer)
        self.logs.append(log)
        return trainer

    def finish(self, trainer: subprocess.Popen[bytes], patience_s: float = 90.0) -> None:
        """Wait for the good end of a trainer."""
        status = trainer.wait(patience_s)
        assert status == 0, self._output("trainer").read_text()

    def progress(self) -> int:
        """Return how many results the trainer's lives have been given."""
        return self.said().count(b'"received"')

    def said(self) -> bytes:
        """Return what the trainer's lives have written down."""
        return b"".join(log.read_bytes() for log in self.logs if log.exists())

    def _output(self, name: str) -> Path:
        return self.directory / f"{name}.out"


@contextmanager
def running(directory: Path, **topology: Any) -> Iterator[Scene]:
    """Run a topology; it must drain well at the end."""
    scene = Scene(directory, **topology)
    try:
        scene.up()
        yield scene
        if scene.launcher is not None:
            scene.down()
    finally:
        scene.abandon()


def named(pids: list[int]) -> dict[str, int]:
    """Return those of some processes that are nodes, by name."""
    return dict(_named(pids))


def _named(pids: list[int]) -> Iterator[tuple[str, int]]:
    for pid in pids:
        arguments = command(pid)
        if "--name" in arguments:
            yield arguments[arguments.index("--name") + 1], pid
        elif "nodes.broker" in arguments:
            yield "broker", pid
