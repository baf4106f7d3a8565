"""`rollmq doctor` finds by name what is deliberately broken in a topology that runs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from engine import load
from engine.client.viewer import Viewer
from engine.records import Task
from engine.seeing.doctor import examine
from engine.seeing.found import Finding
from nodes.tasks.calculator import calculator_tasks

from .chaoskinds.executions import executions
from .conftest import Start
from .scene import Scene, hit, until

pytestmark = pytest.mark.chaos

STAGES = [{"name": "run", "workers": 2, "slots": 2}, {"name": "eval", "slots": 16}]
PLENTY_S = 120.0


def look(scene: Scene, apart_s: float = 0.5) -> list[Finding]:
    with Viewer.at(scene.topology) as viewer:
        return examine(viewer, load(scene.topology), apart_s)[0]


def found(scene: Scene, name: str, **about: Any) -> Finding:
    """Return the first finding of that name about these, as soon as the doctor finds it."""

    def one() -> Finding | None:
        matching = (f for f in look(scene) if f.name == name and about.items() <= f.about.items())
        return next(matching, None)

    return until(one, f"{name} about {about}", PLENTY_S)  # type: ignore[return-value]


def doctor(scene: Scene, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "engine.cli", "doctor", str(scene.topology), *options]
    return subprocess.run(
        command, env=scene.environment, capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Stop processes while the block runs."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            hit(pid, signal.SIGCONT)


def test_a_handler_that_blocks_its_loop_is_named_with_its_rollout_and_attempt(start: Start) -> None:
    stages = [{"name": "run", "slots": 2, "timeout_s": 240, "attempts": 1}, {"name": "eval"}]
    scene = start(stages=stages)
    with scene.client() as client:
        (name,) = client.submit(scene.task("t", "unruly", do="block the loop"), 1)
        finding = found(scene, "hung-handler", rollout_id=name)
        assert finding.severity == "critical"
        about = {"node": "run-0", "stage": "run", "rollout_id": name, "attempt": 1}
        assert about.items() <= finding.about.items()
        assert finding.since_s is not None
        assert finding.since_s > 1.0
        assert "240 s" in finding.bound
        ended = doctor(scene, "--rollout", name, "--json")
        assert (ended.returncode, ended.stderr) == (1, "")
        told = json.loads(ended.stdout)
        assert "hung-handler" in [each["name"] for each in told["findings"]]
        assert told["rollout"]["owner"] == "run-0 on local"
        assert told["rollout"]["waits_for"] == "the result of attempt 1"
        hit(scene.host("run-0"), signal.SIGKILL)
        assert [rollout.outcome for rollout in client.rollouts()] == ["failed"]


def test_a_handler_that_waits_for_ever_is_named_before_its_timeout(start: Start) -> None:
    stages = [{"name": "run", "slots": 2, "timeout_s": 16}, {"name": "eval"}]
    scene = start(stages=stages)
    with scene.client() as client:
        (name,) = client.submit(scene.task("t", "sleeper", run_s=3600), 1)
        finding = found(scene, "slow-attempt", rollout_id=name, node="run-0", stage="run")
        assert finding.since_s is not None
        assert 8.0 <= finding.since_s < 20.0
        client.cancel([name])


def test_a_worker_that_is_stopped_is_named_with_what_it_holds(start: Start) -> None:
    scene = start(stages=STAGES)
    with scene.client() as client:
        client.submit(scene.task("t", run_s=2.0), 4)
        until(lambda: len(executions(scene.counts)) == 4, "four rollouts to run")
        with stopped(scene.node("run-0"), scene.host("run-0")):
            finding = found(scene, "silent-worker", node="run-0", host="local", stage="run")
            assert finding.severity == "critical"
            assert "without a heartbeat" in finding.measured
            assert not [f for f in look(scene) if f.about.get("node") == "run-1"]
        assert {rollout.outcome for rollout in client.rollouts()} == {"completed"}


def test_a_host_process_that_is_stopped_is_told_from_one_whose_handler_hangs(start: Start) -> None:
    scene = start(stages=STAGES)
    with stopped(scene.host("run-1")):
        finding = found(scene, "stopped-host", node="run-1")
        assert "no handler's code" in finding.what


def test_a_backend_that_samples_no_token_is_named(start: Start) -> None:
    options = {"faults": [{"kind": "hang", "after": 1, "times": 0}]}
    scene = start(
        stages=[{"name": "init"}, {"name": "run", "timeout_s": 240}, {"name": "eval"}],
        router={},
        backends=[{"name": "sim", "kind": "simulator", "options": options}],
    )
    settings = {"turns": 2, "max_tokens": 64, "context_tokens": 1024, "temperature": 1.0}
    task = next(calculator_tasks(1, 7, {**settings, "template": "", "renderer": ""}))
    with scene.client() as client:
        client.submit(Task(**task), 3)
        finding = found(scene, "stalled-backend", backend="sim-0")
        assert finding.severity == "critical"
        assert finding.since_s is not None
        assert finding.since_s >= 2.0
        assert finding.about["running"] >= 1
        client.cancel(everything=True)


def test_a_backend_that_is_stopped_is_named(start: Start) -> None:
    backends = [{"name": "sim", "kind": "simulator", "count": 2}]
    scene = start(stages=[{"name": "run"}], router={}, backends=backends)
    with stopped(scene.node("sim-1")):
        assert found(scene, "backend-not-open", backend="sim-1").severity == "warning"
        assert found(scene, "silent-node", node="sim-1").severity == "critical"


def test_a_client_that_takes_its_results_and_acknowledges_none_is_named(start: Start) -> None:
    scene = start(stages=STAGES)
    with scene.client("trainer-7", window=2) as client:
        client.submit(scene.task("t"), 6)
        until(lambda: client.status()["counts"].get("completed") == 6, "six rollouts to end")
        finding = found(scene, "client-not-acknowledging", client_id="trainer-7")
        assert "2 delivered" in finding.measured
        assert "4 further results" in finding.what
        assert len(list(client.rollouts())) == 6
    assert not [each for each in look(scene) if "client_id" in each.about]


def test_a_slow_stage_that_holds_back_the_one_before_is_named(start: Start) -> None:
    stages = [{"name": "run", "slots": 8}, {"name": "eval", "slots": 1, "ready": 2}]
    scene = start(stages=stages)
    with scene.client() as client:
        client.submit(scene.task("t", eval_s=3600), 8)
        finding = found(scene, "full-queue", stage="eval")
        assert finding.bound == "ready 2"
        assert "1 of 1 slots are busy" in finding.what
        client.cancel(everything=True)


def test_a_node_that_is_gone_is_named_with_its_host(start: Start) -> None:
    scene = start(stages=STAGES)
    launcher = scene.launcher
    assert launcher is not None
    guardian = scene.node("run-1")
    with stopped(launcher.pid):  # nobody restarts what ends
        hit(guardian, signal.SIGKILL)
        assert found(scene, "silent-worker", node="run-1").about["host"] == "local"


def test_a_broker_that_does_not_answer_is_a_finding_and_comes_back(start: Start) -> None:
    scene = start(stages=STAGES)
    with stopped(scene.node("broker")):
        assert [each.name for each in look(scene)] == ["broker-unreachable"]
    until(lambda: not [f for f in look(scene) if f.name == "broker-unreachable"], "the broker")


def test_wrong_input_has_its_own_exit_status(start: Start) -> None:
    scene = start(stages=STAGES)
    unknown = doctor(scene, "--rollout", "nobody")
    assert unknown.returncode == 2
    assert "no rollout 'nobody'" in unknown.stderr
    scene.topology.write_text("version: 2\n")
    wrong = doctor(scene)
    assert wrong.returncode == 2
    assert "topology.yaml:1: version" in wrong.stderr
