"""Handlers that hang, hold the interpreter, or take their worker down: nobody else pays."""

import pytest

from engine import Rollout

from .chaoskinds.executions import executions
from .conftest import Start
from .scene import Scene, until

pytestmark = pytest.mark.chaos

INNOCENTS = 6
ATTEMPTS = 2


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("unruly", {"do": "block the loop"}),
        ("unruly", {"do": "hold the interpreter"}),
        ("unruly", {"do": "swallow the cancel"}),
        ("plain", {"never": True}),
    ],
    ids=["blocks the loop", "holds the interpreter", "swallows the cancel", "never returns"],
)
def test_a_handler_that_hangs_fails_alone(
    start: Start, kind: str, payload: dict[str, object]
) -> None:
    scene = start(stages=stages(workers=1), timeouts={"cancel_grace_s": 0.5})
    found = culprit_and_innocents(scene, kind, payload)
    assert ("worker", "Blocked") in {(f.boundary, f.error) for f in found["culprit-0"].failures}
    assert "not over in time" in found["culprit-0"].failures[-1].message
    expect_no_lease_of_running_work_to_expire(scene, found)


@pytest.mark.parametrize("do", ["exit", "kill the guardian"])
def test_a_rollout_that_kills_every_worker_it_meets_fails_alone(start: Start, do: str) -> None:
    scene = start(stages=stages(workers=2))
    found = culprit_and_innocents(scene, "unruly", {"do": do})
    boundaries = {failure.boundary for failure in found["culprit-0"].failures}
    assert boundaries <= {"worker", "lease"}, "a guardian's end shows when its lease is over"
    assert all(failure.message for failure in found["culprit-0"].failures)


def test_many_plain_functions_run_at_once(start: Start) -> None:
    scene = start(stages=[{"name": "run", "slots": 24, "timeout_s": 2}, {"name": "eval"}])
    with scene.client() as client:
        client.submit(scene.task("t", "plain", run_s=1.0), 24)
        found = list(client.rollouts())
    assert [(rollout.outcome, rollout.failures) for rollout in found] == [("completed", ())] * 24


def test_a_result_over_the_message_limit_fails_readably(start: Start) -> None:
    scene = start(stages=stages(workers=1), limits={"message_bytes": "1MiB"})
    found = culprit_and_innocents(scene, "unruly", {"do": "leave too much"})
    (failure, *_) = found["culprit-0"].failures
    assert failure.boundary == "handler"
    assert "over limits.message_bytes" in failure.message


def expect_no_lease_of_running_work_to_expire(scene: Scene, found: dict[str, Rollout]) -> None:
    """Work that a hung host never took has nobody to renew its lease."""
    begun = executions(scene.counts)
    for name, rollout in found.items():
        expired = {failure.attempt for failure in rollout.failures if failure.boundary == "lease"}
        assert expired.isdisjoint(begun["run", name]), rollout


def stages(workers: int) -> list[dict[str, object]]:
    run = {"name": "run", "workers": workers, "slots": 8, "timeout_s": 1.5, "attempts": ATTEMPTS}
    return [run, {"name": "eval", "slots": 8}]


def culprit_and_innocents(
    scene: Scene, kind: str, payload: dict[str, object]
) -> dict[str, Rollout]:
    """Run both; the culprit must fail after its attempts, and everyone else complete."""
    with scene.client() as client:
        client.submit(scene.task("innocent", run_s=0.5), INNOCENTS, group_id="innocent")
        client.submit(scene.task("culprit", kind, **payload), 1, group_id="culprit")
        until(lambda: ("run", "culprit-0") in executions(scene.counts), "the culprit to run")
        client.submit(scene.task("later", run_s=0.1), INNOCENTS, group_id="later")
        found = {rollout.rollout_id: rollout for rollout in client.rollouts()}
    culprit = found["culprit-0"]
    assert (culprit.outcome, culprit.reward) == ("failed", None), culprit
    others = [rollout for name, rollout in found.items() if name != "culprit-0"]
    assert len(others) == 2 * INNOCENTS
    assert {rollout.outcome for rollout in others} == {"completed"}, others
    return found
