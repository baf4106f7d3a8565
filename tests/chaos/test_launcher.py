"""The launcher's end, sudden and asked for."""

import os
import signal

import pytest

from .chaoskinds.executions import executions
from .conftest import Start
from .scene import is_alive, until

pytestmark = pytest.mark.chaos

STAGES = [{"name": "run", "workers": 2}, {"name": "eval"}]


def test_no_process_outlives_a_launcher_that_was_killed(start: Start) -> None:
    scene = start(stages=STAGES)
    everyone = scene.everyone()
    assert len(everyone) == 1 + 1 + 2 * 3, "launcher, broker, and two processes a worker"
    os.kill(everyone[0], signal.SIGKILL)
    scene.launcher.wait()  # type: ignore[union-attr]
    until(lambda: not any(map(is_alive, everyone)), "the end of every process", 5.0)
    scene.launcher.stdout.close()  # type: ignore[union-attr]
    scene.launcher = None


def test_an_interrupt_drains_what_is_running(start: Start) -> None:
    scene = start(stages=STAGES, timeouts={"drain_s": 10})
    with scene.client("trainer") as client:
        names = client.submit(scene.task("t", run_s=0.5), 8)
        until(lambda: len(executions(scene.counts)) == 8, "eight rollouts to run")
    everyone = scene.everyone()
    scene.down(signal.SIGINT)
    assert not any(map(is_alive, everyone))
    scene.up()
    with scene.client("trainer") as client:
        found = {rollout.rollout_id: rollout.outcome for rollout in client.rollouts()}
    assert found == dict.fromkeys(names, "completed")
    begun = executions(scene.counts)
    assert [len(begun["run", name]) for name in names] == [1] * 8
