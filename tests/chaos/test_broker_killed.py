"""A broker that is killed, and one that is drained and started again."""

import os
import signal
import time
from pathlib import Path

import pytest

from . import oracle
from .chaoskinds.executions import executions
from .conftest import Start
from .scene import Scene, until

pytestmark = pytest.mark.chaos

ROLLOUTS = 600
KILLS = 5
PATIENT_S = 30.0


def test_rollouts_in_progress_are_adopted_by_each_of_five_new_brokers(start: Start) -> None:
    stages = [{"name": "run", "workers": 2, "slots": 16}, {"name": "eval"}]
    timeouts = {"lease_s": PATIENT_S}  # as long are workers waited for that are to be adopted
    scene = start(stages=stages, limits={"rollouts": 5000}, timeouts=timeouts)
    gate = scene.directory / "gate"
    with scene.client("patient") as patient:
        long = patient.submit(scene.task("long", gate=str(gate)), 8)
        until(lambda: len(executions(scene.counts)) == 8, "the long rollouts to run")
        trainer = scene.start_trainer(ROLLOUTS, payload={"run_s": 0.2})
        for number in range(1, KILLS + 1):
            until_progress(scene, number * ROLLOUTS // (KILLS + 2))
            os.kill(scene.node("broker"), signal.SIGKILL)
            until(lambda: adoptions(scene) >= len(long), "the broker's return")
        gate.touch()
        scene.finish(trainer)
        outcomes = [rollout.outcome for rollout in patient.rollouts()]
    assert outcomes == ["completed"] * len(long)
    begun = executions(scene.counts)
    assert [begun["run", name] for name in long] == [[1]] * len(long)
    verdict = oracle.judge(scene.logs)
    assert not verdict.problems, verdict
    assert verdict.counts["completed"] == ROLLOUTS, verdict


def test_a_topology_started_again_delivers_what_was_not_acknowledged(start: Start) -> None:
    stages = [{"name": "run"}, {"name": "eval"}]
    scene = start(stages=stages, timeouts={"drain_s": 0.5})
    gate = scene.directory / "gate"
    with scene.client("trainer") as client:
        ended = client.submit(scene.task("short"), 8)
        until(lambda: client.status()["counts"].get("completed") == 8, "results")
        begun = client.submit(scene.task("long", gate=str(gate)), 2)
        until(lambda: ("run", begun[1]) in executions(scene.counts), "the long ones to run")
    scene.down()
    scene.up()
    gate.touch()
    with scene.client("trainer") as client:
        found = {rollout.rollout_id: rollout.outcome for rollout in client.rollouts()}
    assert found == dict.fromkeys([*ended, *begun], "completed")
    assert all(len(executions(scene.counts)["run", name]) == 1 for name in ended)


def test_a_broker_that_stands_still_for_longer_than_a_lease_blames_nobody(start: Start) -> None:
    stages = [{"name": "run", "slots": 16}, {"name": "eval"}]
    scene = start(stages=stages, timeouts={"heartbeat_s": 0.3, "lease_s": 1.0})
    with scene.client() as client:
        client.submit(scene.task("t", run_s=4.0), 16)
        until(lambda: len(executions(scene.counts)) == 16, "sixteen rollouts to run")
        broker = scene.node("broker")
        os.kill(broker, signal.SIGSTOP)
        end = time.monotonic() + 2.0
        until(lambda: time.monotonic() > end, "time to pass")
        os.kill(broker, signal.SIGCONT)
        found = [(rollout.outcome, rollout.failures) for rollout in client.rollouts()]
    assert found == [("completed", ())] * 16
    assert set(map(len, executions(scene.counts).values())) == {1}


def test_nothing_is_left_of_a_topology_that_was_drained(start: Start) -> None:
    scene = start(stages=[{"name": "run"}, {"name": "eval"}])
    everyone = scene.everyone()
    scene.down()
    assert not [pid for pid in everyone if Path(f"/proc/{pid}").exists()]


def until_progress(scene: Scene, number: int) -> None:
    until(lambda: scene.progress() >= number, f"{number} results")


def adoptions(scene: Scene) -> int:
    report = scene.status()
    return 0 if report["recovering"] else report["counts"].get("adopted", 0)
