"""A trainer that is killed and resumes under the same client_id."""

import pytest

from . import oracle
from .chaoskinds.executions import executions
from .conftest import Start
from .scene import until

pytestmark = pytest.mark.chaos

ROLLOUTS = 800
LIVES = 5


def test_a_trainer_killed_four_times_resumes_and_every_rollout_ends_once(start: Start) -> None:
    scene = start(stages=[{"name": "run", "slots": 32}, {"name": "eval"}])
    for number in range(1, LIVES):
        trainer = scene.start_trainer(ROLLOUTS, payload={"run_s": 0.05})
        enough = number * ROLLOUTS // (LIVES + 1)
        until(lambda: scene.progress() >= enough, f"{enough} results")  # noqa: B023
        trainer.kill()
        trainer.wait()
    scene.finish(scene.start_trainer(ROLLOUTS, payload={"run_s": 0.05}))
    verdict = oracle.judge(scene.logs)
    assert not verdict.problems, verdict
    assert verdict.counts["lives"] == LIVES
    assert verdict.counts["ended"] == ROLLOUTS
    assert set(map(len, executions(scene.counts).values())) == {1}


def test_a_trainer_killed_while_it_submits_resumes(start: Start) -> None:
    scene = start(stages=[{"name": "run", "slots": 32}, {"name": "eval"}])
    trainer = scene.start_trainer(ROLLOUTS)
    until(lambda: b"accepted" in scene.said(), "the first answer")
    trainer.kill()
    trainer.wait()
    scene.finish(scene.start_trainer(ROLLOUTS))
    verdict = oracle.judge(scene.logs)
    assert not verdict.problems, verdict
    assert verdict.counts["ended"] == ROLLOUTS
