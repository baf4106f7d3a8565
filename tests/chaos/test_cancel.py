"""Cancels, told to workers that hear them and to one that does not."""

import os
import signal

import pytest

from engine import Client

from .chaoskinds.executions import executions
from .conftest import Start
from .scene import Scene, until

pytestmark = pytest.mark.chaos

STAGES = [{"name": "run", "slots": 4}, {"name": "eval"}]


def test_running_and_queued_rollouts_are_cancelled_with_receipts(start: Start) -> None:
    scene = start(stages=STAGES, timeouts={"drain_s": 0.5})
    with scene.client() as client:
        names = submit_endless(scene, client)
        begun = running(scene)
        queued = next(name for name in names if name not in begun)
        answer = client.cancel([begun[0], queued, "nobody"])
        receipts = {receipt.rollout_id: receipt for receipt in answer.receipts}
        assert receipts.keys() == {begun[0], queued}
        assert (receipts[begun[0]].stage, receipts[begun[0]].running) == ("run", True)
        assert receipts[begun[0]].usage.tokens == 3
        assert (receipts[queued].stage, receipts[queued].running) == ("", False)
        assert answer.unknown == ("nobody",)
        assert {rollout.outcome for rollout in two(client)} == {"cancelled"}


def test_a_group_and_then_everything_is_cancelled_and_its_slots_return(start: Start) -> None:
    scene = start(stages=STAGES)
    with scene.client() as client:
        names = submit_endless(scene, client)
        others = client.submit(scene.task("other", gate=str(scene.directory / "never")), 4)
        group = client.cancel(group_ids=["endless"])
        assert {receipt.rollout_id for receipt in group.receipts} == set(names)
        rest = client.cancel(everything=True)
        assert {receipt.rollout_id for receipt in rest.receipts} == set(others)
        client.submit(scene.task("after"), 8, group_id="after")
        found = {rollout.rollout_id: rollout for rollout in client.rollouts()}
    assert {found[f"after-{number}"].outcome for number in range(8)} == {"completed"}
    cancelled = [found[name] for name in (*names, *others)]
    assert {(r.outcome, r.reward, r.trainable) for r in cancelled} == {("cancelled", None, False)}
    assert all(rollout.receipt for rollout in cancelled)


def test_a_cancel_that_has_ended_already_says_so(start: Start) -> None:
    scene = start(stages=STAGES)
    with scene.client() as client:
        names = client.submit(scene.task("quick"), 4)
        assert len(list(client.rollouts())) == 4
        answer = client.cancel(names)
    assert answer.receipts == ()
    assert sorted(answer.ended) == sorted(names)


def test_work_that_is_cancelled_while_its_host_stands_still_never_begins(start: Start) -> None:
    """The work lies in the pipe of a stopped process when the cancel is answered."""
    scene = start(stages=STAGES, timeouts={"heartbeat_s": 0.3, "lease_s": 1.0})
    host = scene.host("run-0")
    with scene.client() as client:
        os.kill(host, signal.SIGSTOP)
        try:
            names = submit_endless(scene, client, until_running=False)
            until(lambda: client.status()["stages"][0]["leased"] == 4, "leases")
            answer = client.cancel(names)
        finally:
            os.kill(host, signal.SIGCONT)
        assert {receipt.rollout_id for receipt in answer.receipts} == set(names)
        after = client.submit(scene.task("after"), 8, group_id="after")
        outcomes = {rollout.rollout_id: rollout.outcome for rollout in client.rollouts()}
    assert {outcomes[name] for name in names} == {"cancelled"}
    assert {outcomes[name] for name in after} == {"completed"}
    assert set(running(scene)) == set(after)


def submit_endless(scene: Scene, client: Client, *, until_running: bool = True) -> tuple[str, ...]:
    """Submit eight rollouts that never end; four of them find slots."""
    never = str(scene.directory / "never")
    names = client.submit(scene.task("endless", gate=never), 8, group_id="endless")
    if until_running:
        until(lambda: len(running(scene)) == 4, "four rollouts to run")
    return names


def running(scene: Scene, event: str = "run") -> list[str]:
    return [name for stage, name in executions(scene.counts) if stage == event]


def two(client: Client) -> list[object]:
    found = client.rollouts()
    return [next(found), next(found)]
