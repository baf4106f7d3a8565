"""A run on a disk that may fail: what is acknowledged is on it."""

import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engine import Client, Task
from engine.output import FILE_NAME, read_rollouts
from engine.run import RunOptions, run
from engine.supervisor import Supervisor
from engine.topology import Topology

from ..topology_kit import ECHO, QUICK, prepared

pytestmark = pytest.mark.timeout(900)  # each starts a topology three times
MEMBERS = 6
TASKS = [Task("t", "kinds.echo", {})]


@pytest.fixture
def topology(short_path: Path) -> Iterator[Topology]:
    text = QUICK.replace("drain_s: 2", "drain_s: 20, start_s: 240")
    with prepared(short_path, text, {"echo": ECHO}) as found:
        yield found


def run_it(topology: Topology, out: Path, *, resume: bool = False) -> dict[str, Any]:
    options = RunOptions(out, MEMBERS, resume, overwrite=False, quiet=True)
    return run(topology, TASKS, options, Console(file=io.StringIO()))


def unacknowledged(topology: Topology, out: Path) -> int:
    """Return how many results the broker still has for a run."""
    name = json.loads((out / "run.json").read_bytes())["name"]
    with Supervisor(topology) as supervisor:
        supervisor.wait_ready(topology.timeouts.start_s)
        with Client(topology.path) as observer:
            clients = observer.status()["clients"]
    return sum(each["unacked"] for each in clients if each["client_id"] == name)


def test_nothing_is_acknowledged_that_the_disk_did_not_take(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    out = topology.path.parent / "out"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", refuse)
        with pytest.raises(OSError, match="Input/output error"):
            run_it(topology, out)
    assert unacknowledged(topology, out) == MEMBERS
    report = run_it(topology, out, resume=True)
    assert report["outcomes"] == {"completed": MEMBERS}
    assert len({each.rollout_id for each in read_rollouts(out / FILE_NAME)}) == MEMBERS
    assert unacknowledged(topology, out) == 0


def test_what_is_synced_is_written_and_what_is_acknowledged_is_synced(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = topology.path.parent / "out"
    file = out / FILE_NAME
    synced: list[int] = []
    real: Callable[[int], None] = os.fdatasync

    def watched(descriptor: int) -> None:
        real(descriptor)
        synced.append(len(file.read_bytes().splitlines()))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", watched)
        run_it(topology, out)
    assert synced[-1] == MEMBERS
    assert unacknowledged(topology, out) == 0
