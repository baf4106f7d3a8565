"""Workers that stand still, for less and for more than their lease."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine import Client

from .chaoskinds.executions import executions
from .conftest import Start
from .scene import Scene, until

pytestmark = pytest.mark.chaos

STAGES = [{"name": "run", "workers": 2, "slots": 4}, {"name": "eval", "slots": 16}]


def test_a_worker_stopped_for_less_than_its_lease_starts_nothing_over(start: Start) -> None:
    scene = start(stages=STAGES)
    with scene.client() as client:
        client.submit(scene.task("t", run_s=2.0), 8)
        until_running(scene, 8)
        with stopped(scene, "run-0"):
            let_pass(1.0)
        outcomes = [rollout.outcome for rollout in client.rollouts()]
    assert outcomes == ["completed"] * 8
    assert set(map(len, executions(scene.counts).values())) == {1}
    assert scene.status()["counts"].get("expired", 0) == 0


def test_a_worker_stopped_for_longer_is_replaced_and_commits_nothing_twice(start: Start) -> None:
    scene = start(stages=STAGES)
    with scene.client() as client:
        names = client.submit(scene.task("t", run_s=0.5), 8)
        until_running(scene, 8)
        with stopped(scene, "run-0"):
            given = [rollout.rollout_id for rollout in client.rollouts()]
            until(lambda: is_silent(client, "run-0"), "silence of run-0")
        until(lambda: not is_silent(client, "run-0"), "run-0 to be heard again")
        until(lambda: holds_nothing(client), "the old attempts to be over")
        given += [rollout.rollout_id for rollout in client.rollouts()]
        report = client.status()
    assert sorted(given) == sorted(names)
    assert report["counts"]["completed"] == 8
    assert report["counts"]["expired"] == 4
    begun = executions(scene.counts)
    assert sorted(len(begun["run", name]) for name in names) == [1] * 4 + [2] * 4
    assert all(len(begun["eval", name]) == 1 for name in names)


@contextmanager
def stopped(scene: Scene, name: str) -> Iterator[None]:
    """Stop a worker, guardian and host, while the block runs."""
    pids = [scene.node(name), scene.host(name)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def let_pass(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    until(lambda: time.monotonic() > deadline, "time to pass")


def until_running(scene: Scene, number: int) -> None:
    until(lambda: len(executions(scene.counts)) == number, f"{number} rollouts to run")


def is_silent(client: Client, node: str) -> bool:
    return any(w["silent"] for w in client.status()["workers"] if w["node"] == node)


def holds_nothing(client: Client) -> bool:
    return not any(worker["leased"] for worker in client.status()["workers"])
