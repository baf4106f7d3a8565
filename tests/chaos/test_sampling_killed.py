"""Samplings whose broker and whose trainer are killed in the middle of batches."""

import os
import signal
import subprocess
from typing import Any

import pytest

from engine import Client

from . import oracle
from .chaoskinds.executions import executions
from .conftest import Start
from .sampling_oracle import Asked, Verdict, judge
from .scene import Scene, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

STAGES = [{"name": "run", "slots": 24, "attempts": 1}, {"name": "eval", "slots": 8}]
PROMPTS = 150
WHOLE = Asked(groups=5, group_size=4, ahead=1, prompts=PROMPTS, pattern="iuiif")
ENDLESS = Asked(groups=4, group_size=4, pattern="iu")
BATCHES = 12
KILLS = 3
Life = subprocess.Popen[bytes]


def whole(scene: Scene) -> Life:
    """Start a life that carries over and ends with its prompts."""
    return live(scene, WHOLE, over="carry", prompts=WHOLE.prompts)


def endless(scene: Scene) -> Life:
    """Start a life that cancels what a batch does not need, and stops after some batches."""
    return live(scene, ENDLESS, over="cancel", batches=BATCHES)


def live(scene: Scene, asked: Asked, **options: Any) -> Life:
    asked_for = {"groups": asked.groups, "group_size": asked.group_size, "ahead": asked.ahead}
    return scene.start_life("sampling_trainer.py", pattern=asked.pattern, **asked_for, **options)


def begun(scene: Scene) -> int:
    return sum(stage == "run" for stage, _ in executions(scene.counts))


def until_begun(scene: Scene, number: int) -> None:
    until(lambda: begun(scene) >= number, f"{number} rollouts to begin")


def kill_trainer(trainer: Life) -> None:
    assert trainer.poll() is None, "it had ended before it was killed"
    trainer.kill()
    trainer.wait()


def is_half_full(observer: Client) -> bool:
    (state,) = observer.status()["samplings"]
    return bool(state["open"] or state["kept"])


def kill_broker(scene: Scene) -> None:
    """Kill it with a batch half full, and wait for the next one to have taken up its work."""
    with scene.client("observer") as observer:
        until(lambda: is_half_full(observer), "a batch to be half full")
    broker = scene.node("broker")
    os.kill(broker, signal.SIGKILL)
    until(lambda: scene.nodes.get("broker") not in {None, broker}, "another broker")


def verdict_on(scene: Scene, asked: Asked, *, whole: bool = False) -> Verdict:
    return judge([oracle.read_log(log) for log in scene.logs], asked, whole=whole)


def wanted() -> set[str]:
    """Return the rollouts of every group that no failed member stops."""
    numbers = [n for n in range(PROMPTS) if WHOLE.pattern[n % len(WHOLE.pattern)] != "f"]
    return {f"chaos-{n}-{member}" for n in numbers for member in range(WHOLE.group_size)}


def runs(scene: Scene) -> dict[str, list[int]]:
    """Return the attempts of each of them."""
    found = executions(scene.counts)
    return {name: n for (stage, name), n in found.items() if stage == "run" and name in wanted()}


def is_gone(scene: Scene) -> bool:
    report = scene.status()
    return not report["samplings"] and not any(c["unacked"] for c in report["clients"])


def test_a_batch_goes_on_after_each_of_three_brokers_was_killed(start: Start) -> None:
    scene = start(stages=STAGES)
    trainer = whole(scene)
    for number in range(1, KILLS + 1):
        until_begun(scene, number * PROMPTS * 4 // (KILLS + 2))
        kill_broker(scene)
    scene.finish(trainer)
    verdict = verdict_on(scene, WHOLE, whole=True)
    assert not verdict.problems, verdict
    assert verdict.again == 0
    assert runs(scene).keys() == wanted()
    until(lambda: is_gone(scene), "nothing to be left of it")


def test_a_trainer_killed_three_times_goes_on_with_its_batch(start: Start) -> None:
    scene = start(stages=STAGES)
    for number in range(1, KILLS + 1):
        trainer = whole(scene)
        until_begun(scene, number * PROMPTS * 4 // (KILLS + 2))
        kill_trainer(trainer)
    scene.finish(whole(scene))
    verdict = verdict_on(scene, WHOLE, whole=True)
    assert not verdict.problems, verdict
    assert len(scene.logs) == KILLS + 1
    assert runs(scene) == {name: [1] for name in wanted()}, "nothing ran twice"
    until(lambda: is_gone(scene), "nothing to be left of it")


def test_batches_that_cancel_the_rest_survive_both_killed_in_turn(start: Start) -> None:
    scene = start(stages=STAGES)
    trainer = endless(scene)
    for number in range(1, KILLS + 1):
        wanted = number * BATCHES // (KILLS + 1)
        until(lambda: scene.said().count(b'"batch"') >= wanted, f"{wanted} batches")  # noqa: B023
        if number % 2:
            kill_broker(scene)
        else:
            kill_trainer(trainer)
            trainer = endless(scene)
    scene.finish(trainer)
    verdict = verdict_on(scene, ENDLESS)
    assert not verdict.problems, verdict
    assert len(verdict.batches) == BATCHES
    until(lambda: is_gone(scene), "nothing to be left of it")


def test_both_killed_at_once_and_the_batch_is_resumed(start: Start) -> None:
    scene = start(stages=STAGES)
    for number in range(1, KILLS):
        trainer = whole(scene)
        until_begun(scene, number * PROMPTS * 4 // (KILLS + 1))
        kill_broker(scene)
        kill_trainer(trainer)
    scene.finish(whole(scene))
    verdict = verdict_on(scene, WHOLE, whole=True)
    assert not verdict.problems, verdict
    until(lambda: is_gone(scene), "nothing to be left of it")
