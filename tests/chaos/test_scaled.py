"""Stages that grow and shrink under load, while their launcher and workers are killed."""

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import oracle
from .conftest import Start
from .scene import PATIENCE_S, Scene, hit, until

pytestmark = pytest.mark.chaos

ROLLMQ = Path(sys.executable).with_name("rollmq")
ROLLOUTS = 1600
ROUNDS = 12


def stages(run: int, evaluate: int, slots: int) -> list[dict[str, Any]]:
    return [
        {"name": "run", "workers": run, "slots": slots, "attempts": 10},
        {"name": "eval", "workers": evaluate, "attempts": 10},
    ]


def apply(scene: Scene, **changes: Any) -> None:
    """Change the file, and what runs."""
    document = yaml.safe_load(scene.topology.read_text())
    scene.topology.write_text(yaml.safe_dump({**document, **changes}))
    done = subprocess.run(
        [ROLLMQ, "apply", scene.topology],
        env=scene.environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stage_that_grows_and_shrinks_under_load_loses_nothing_whoever_is_killed(
    start: Start,
) -> None:
    scene = start(stages=stages(2, 1, 12), timeouts={"drain_s": 1.0})
    trainer = scene.start_trainer(ROLLOUTS, payload={"run_s": 0.25, "eval_s": 0.02})
    chance, kills, lives, rounds = random.Random(11), 0, 1, 0
    while trainer.poll() is None and rounds < ROUNDS:
        rounds += 1
        run, evaluate = chance.randint(1, 4), chance.randint(1, 2)
        apply(scene, stages=stages(run, evaluate, chance.choice((6, 12, 20))))
        if rounds % 2:
            victims = [pid for name, pid in scene.nodes.items() if name.startswith("run")]
            hit(chance.choice(victims), signal.SIGKILL)
            kills += 1
        if rounds % 4 == 0:
            scene.kill_launcher()
            scene.up()
            lives += 1
    until(lambda: trainer.poll() is not None, "the trainer's end", 3 * PATIENCE_S)
    scene.finish(trainer)
    verdict = oracle.judge(scene.logs)
    assert not verdict.problems, verdict
    assert verdict.counts["completed"] == ROLLOUTS, verdict
    assert kills >= 2, f"{rounds} rounds, {lives} lives"


def test_what_a_drained_worker_cannot_finish_goes_on_elsewhere(start: Start) -> None:
    scene = start(stages=stages(3, 1, 8), timeouts={"drain_s": 0.5})
    gate = scene.directory / "gate"
    with scene.client("trainer") as client:
        client.submit(scene.task("t", gate=str(gate)), 24)
        until(lambda: _leased(scene) == 24, "all to be under way")
        apply(scene, stages=stages(1, 1, 8))
        until(lambda: set(scene.nodes) == {"broker", "run-0", "eval-0"}, "two workers to be gone")
        until(lambda: _leased(scene) == 8, "the one that stays to be full")
        apply(scene, stages=stages(1, 1, 16))
        until(lambda: _leased(scene) == 16, "it to have taken more")
        gate.touch()
        found = list(client.rollouts())
    assert len(found) == 24
    assert {rollout.outcome for rollout in found} == {"completed"}


def _leased(scene: Scene) -> int:
    workers = scene.status()["workers"]
    return sum(worker["leased"] for worker in workers if worker["stage"] == "run")
