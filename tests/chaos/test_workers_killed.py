"""Workers that are killed, and workers that stand still."""

import random
import signal
import time

import pytest

from . import oracle
from .conftest import Start
from .scene import Scene, hit, until

pytestmark = pytest.mark.chaos

ROLLOUTS = 2000
KILL_EVERY_S = 0.5
ATTEMPTS = 12  # who is alone on a worker that is killed is blamed: by bad luck several times
LEFT = 4  # of ten processes: with fewer, a busy machine starts them as fast as they are killed


def test_two_thousand_rollouts_end_once_while_workers_are_killed_every_half_second(
    start: Start,
) -> None:
    stages = [
        {"name": "run", "workers": 3, "slots": 16, "attempts": ATTEMPTS},
        {"name": "eval", "workers": 2, "attempts": ATTEMPTS},
    ]
    scene = start(stages=stages)
    trainer = scene.start_trainer(ROLLOUTS, payload={"run_s": 0.1, "eval_s": 0.05})
    chance, kills = random.Random(7), 0
    while trainer.poll() is None:
        next_kill = time.monotonic() + KILL_EVERY_S
        victims = workers(scene)
        if len(victims) > LEFT:
            hit(chance.choice(victims), signal.SIGKILL)
            kills += 1
        until(lambda: trainer.poll() is not None or time.monotonic() > next_kill, "time")  # noqa: B023
    scene.finish(trainer)
    verdict = oracle.judge(scene.logs)
    assert not verdict.problems, verdict
    assert verdict.counts["completed"] == ROLLOUTS, verdict
    assert kills > 10


def workers(scene: Scene) -> list[int]:
    """Return guardians and hosts."""
    assert scene.launcher is not None
    broker = scene.nodes.get("broker")
    return [pid for pid in scene.everyone()[1:] if pid != broker]
