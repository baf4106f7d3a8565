"""What a launcher does with its children, step by step."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from engine.children import GIVE_UP, SLACK_S, Children
from engine.errors import NodeFailed
from engine.topology import Topology, load_text

TOPOLOGY = load_text(
    "version: 1\nstages: [{name: run}]\n", Path("/tmp/x/topology.yaml"), "topology.yaml"
)
NEWER = load_text(
    "version: 1\nstages: [{name: run, slots: 9}]\n", Path("/tmp/x/topology.yaml"), "topology.yaml"
)
NODE = TOPOLOGY.node("run-0")


class Process:
    """A process that ends when the test says so."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.signals: list[int] = []

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


class Bench:
    """Children whose processes are not real."""

    def __init__(self) -> None:
        self.started: list[Process] = []
        self.children = Children(self._spawn, lambda name: f"{name} said this")

    def _spawn(self, _node: Any) -> Any:
        self.started.append(Process(len(self.started) + 1))
        return self.started[-1]

    def watch(self, now: float, topology: Topology = TOPOLOGY) -> None:
        self.children.watch(now, topology)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.children.start(NODE, TOPOLOGY, 0.0)
    return made


def test_a_child_that_ended_comes_back_by_the_topology_of_then(bench: Bench) -> None:
    bench.started[0].returncode = 1
    bench.watch(100.0)
    bench.watch(100.0, NEWER)
    found = bench.children.get("run-0")
    assert found is not None
    assert (len(bench.started), found.restarts, found.started) == (2, 1, NEWER)


def test_a_child_that_keeps_ending_is_given_up_with_its_last_words(bench: Bench) -> None:
    with pytest.raises(NodeFailed, match=r"run-0 keeps ending .*\nrun-0 said this"):
        _end_again_and_again(bench, 3 * GIVE_UP)


def _end_again_and_again(bench: Bench, times: int) -> None:
    now = 0.0
    for _ in range(times):
        bench.started[-1].returncode = 1
        bench.watch(now)
        bench.watch(now + 6.0)
        now += 6.1


def test_a_child_that_is_stopped_is_gone_once_it_has_ended(bench: Bench) -> None:
    bench.children.stop("run-0", 5.0, now=0.0)
    bench.watch(1.0)
    assert bench.children.changing == ["run-0"]
    bench.started[0].returncode = 0
    bench.watch(2.0)
    assert (len(bench.children), len(bench.started)) == (0, 1)


def test_a_child_that_does_not_drain_is_killed_with_its_group(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *found: killed.append(found))
    bench.children.stop("run-0", 5.0, now=0.0)
    bench.watch(4.9 + SLACK_S)
    assert killed == []
    bench.watch(5.0 + SLACK_S)
    assert killed == [(1, signal.SIGKILL)]


def test_a_child_that_is_replaced_starts_once_its_process_has_ended(bench: Bench) -> None:
    bench.children.stop("run-0", 5.0, now=0.0, comes_back=True)
    bench.watch(1.0)
    assert len(bench.started) == 1
    bench.started[0].returncode = 0
    bench.watch(2.0)
    assert len(bench.started) == 2
    found = bench.children.get("run-0")
    assert found is not None
    assert found.restarts == 0


def test_a_child_that_is_wanted_again_while_it_ends_comes_back(bench: Bench) -> None:
    bench.children.stop("run-0", 5.0, now=0.0)
    bench.children.start(NODE, NEWER, now=1.0)
    bench.started[0].returncode = 0
    bench.watch(2.0)
    found = bench.children.get("run-0")
    assert found is not None
    assert (found.started, found.kill_at, len(bench.started)) == (NEWER, None, 2)


def test_a_child_that_is_not_wanted_after_all_does_not_come_back(bench: Bench) -> None:
    bench.children.stop("run-0", 5.0, now=0.0, comes_back=True)
    bench.children.stop("run-0", 5.0, now=1.0)
    bench.started[0].returncode = 0
    bench.watch(2.0)
    assert len(bench.children) == 0


def test_only_a_child_that_runs_is_told_to_read_its_file_again(bench: Bench) -> None:
    bench.children.hang_up("run-0")
    bench.children.stop("run-0", 5.0, now=0.0)
    bench.children.hang_up("run-0")
    assert bench.started[0].signals == [signal.SIGHUP, signal.SIGTERM]
