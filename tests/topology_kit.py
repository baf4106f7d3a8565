"""A topology of real processes in a short-lived directory, for tests that need all of it.

    with running_topology(short_path, TEXT, {"echo": ECHO}) as site:
        ...                     # site.endpoint("front"), site.supervisor.pids, site.until(...)

`kinds` are task kinds: module name to source, placed in the package `kinds`; a task names its kind
as `kinds.<name>`. `QUICK` is a topology of three stages with short times, `ECHO` a kind for it that
echoes its payload. Socket paths are limited to 107 bytes, so the directory must have a short name:
the fixture `short_path` gives one.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from engine.supervisor import Supervisor
from engine.topology import Topology, load

READY_S = 60.0
DEADLINE_S = 20.0
POLL_S = 0.02

QUICK = """\
version: 1
durability: process
timeouts: {heartbeat_s: 0.3, cancel_grace_s: 0.5, drain_s: 2, retry_delay_s: 0.1}
stages:
  - {name: init, slots: 4}
  - {name: run, slots: 4, timeout_s: 30}
  - {name: eval, slots: 4}
"""

ECHO = """\
import numpy as np

from engine.trajectories import Trajectory
from nodes.tasks import Output


async def init(context):
    return Output(data={"payload": context.task.payload})


async def run(context):
    ids = np.arange(8, dtype=np.int32)
    logprobs = np.linspace(-1.0, -0.125, 8, dtype=np.float32)
    mask = np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=np.uint8)
    return Output(trajectory=Trajectory(ids, mask, logprobs))


async def eval(context):
    return Output(reward=1.0, rewards={"echo": 1.0})
"""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Site:
    """A topology that runs: its records and its launcher."""

    topology: Topology
    supervisor: Supervisor

    def endpoint(self, edge: str) -> str:
        """Return the endpoint of an edge, such as `front`."""
        return self.topology.endpoint(edge)

    def log(self, node: str) -> str:
        """Return what a node has logged."""
        return (self.topology.run_dir / "logs" / f"{node}.log").read_text(errors="replace")

    def until(self, look: Callable[[], Found | None], deadline_s: float = DEADLINE_S) -> Found:
        """Look until it finds something true, restarting nodes that ended; return what it found."""
        give_up_at = time.monotonic() + deadline_s
        while not (found := look()):
            assert time.monotonic() < give_up_at, f"not within {deadline_s:g} s: {look}"
            self.supervisor.watch()
            time.sleep(POLL_S)
        return found


@contextmanager
def running_topology(
    directory: Path, text: str, kinds: Mapping[str, str], ready_s: float = READY_S
) -> Iterator[Site]:
    """Start a topology, wait until every node is ready, and stop all of it at the end."""
    with prepared(directory, text, kinds) as topology, Supervisor(topology) as supervisor:
        supervisor.wait_ready(ready_s)
        yield Site(topology, supervisor)


@contextmanager
def prepared(directory: Path, text: str, kinds: Mapping[str, str]) -> Iterator[Topology]:
    """Write a topology and its kinds, where nodes that are started meanwhile find them."""
    package = directory / "kinds"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, source in kinds.items():
        (package / f"{name}.py").write_text(source)
    file = directory / "topology.yaml"
    file.write_text(text)
    with _python_path(directory):
        yield load(file)


@contextmanager
def _python_path(directory: Path) -> Iterator[None]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{directory}:{before}" if before else str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
