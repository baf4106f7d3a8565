"""Samplings while new weights are published, over a router and simulated backends."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from engine import Batch, Client

from ..chaos.scene import Scene, running, until
from ..sampling_play import Play, meanwhile, members_in, names, of, prompts_in

SLOTS = 8
SAMPLES = {"tokens": 4}
PATIENT = {"lease_s": 20.0}  # a router that is late on a busy machine is not lost
pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    stages = [{"name": stage, "slots": SLOTS, "attempts": 1} for stage in ("run", "eval")]
    options = {"script": "filler", "speed": 1000.0}
    backend = {"name": "sim", "kind": "simulator", "capacity": SLOTS, "options": options}
    with (
        TemporaryDirectory(prefix="rq") as folder,
        running(
            Path(folder), stages=stages, router={}, backends=[backend], timeouts=PATIENT
        ) as scene,
    ):
        yield scene


@pytest.fixture
def play(scene: Scene, tmp_path: Path) -> Play:
    return Play(scene, tmp_path)


def current(client: Client) -> int:
    """Return the version in use, once the backend is."""
    (state,) = until(client.backends, "the backend")
    until(lambda: client.backends()[0].state == "open", "the backend to be open")
    return state.policy_version


def publish(client: Client, more: int = 1) -> int:
    """Publish so many versions, one after the other; return the last."""
    version = current(client)
    for number in range(version + 1, version + more + 1):
        client.publish(number)
    return version + more


def versions(batch: Batch) -> set[int | None]:
    return {rollout.policy_version for group in batch.groups for rollout in group}


def test_drop_ends_what_is_too_old_and_gives_up_groups_that_were_kept(play: Play) -> None:
    """Prompt 0 is kept, 1 and 2 run when two versions come; 3 and 4 begin after them."""
    first = [play.prompt(**SAMPLES), play.prompt("never", **SAMPLES)]
    seen: list[int] = []
    with play.scene.client("watch") as watch, play.scene.client() as client:

        def update() -> None:
            play.until_begun(of((0, 1, 2)))
            until(lambda: _state(watch, client).get("kept") == 1, "prompt 0 to be kept")
            seen.append(publish(watch, 2))
            play.until_left(of((1, 2)))
            play.gate("later").touch()

        asked: dict[str, Any] = {"groups": 2, "group_size": 2, "in_flight": 4}
        prompts = play.prompts(*first, gate="later", **SAMPLES)
        batches = client.sample(prompts, **asked, staleness="drop")
        with meanwhile(update):
            batch = next(batches)
        assert prompts_in(batch) == {3, 4}
        assert versions(batch) == {seen[0]}
        until(lambda: batch.is_final, "the batch's last figures")
        assert (batch.report.stale.groups, batch.report.stale.rollouts) == (3, 6)
        assert batch.report.kept.groups == 2
        batches.close()
        play.until_settled(client)


def test_refill_runs_only_the_stale_member_again(play: Play) -> None:
    """Member 0 samples at version v, the others at v + 1; at v + 2 only member 0 is too old."""
    prompts = [
        play.prompt("first", gated=[1, 2, 3], **SAMPLES),
        play.prompt("second", **SAMPLES),
    ]
    seen: list[int] = []
    with play.scene.client("watch") as watch, play.scene.client() as client:

        def update() -> None:
            play.until_begun(of((0, 1), 4))
            until(lambda: _state(watch, client).get("live") == 7, "member 0 to end")
            publish(watch)
            play.gate("first").touch()
            until(lambda: _state(watch, client).get("kept") == 1, "prompt 0 to be kept")
            seen.append(publish(watch))
            play.until_left(of((1,), 4))
            play.gate("second").touch()

        asked: dict[str, Any] = {"groups": 2, "group_size": 4}
        batches = client.sample(prompts, **asked, staleness="refill")
        with meanwhile(update):
            batch = next(batches)
        until(lambda: batch.is_final, "the batch's last figures")
        assert {name for name in members_in(batch) if name[0] == 0} == {
            (0, m) for m in (1, 2, 3, 4)
        }
        assert {name for name in members_in(batch) if name[0] == 1} == {(1, m) for m in range(4, 8)}
        assert [len(group) for group in batch.groups] == [4, 4]
        assert versions(batch) == {seen[0] - 1, seen[0]}
        assert batch.report.refilled == 5
        assert (batch.report.stale.groups, batch.report.stale.rollouts) == (0, 5)
        batches.close()
        play.until_settled(client)


def test_withhold_delivers_a_stale_member_that_is_not_for_training(play: Play) -> None:
    prompts = [play.prompt("gate", gated=[1], **SAMPLES)]
    with play.scene.client("watch") as watch, play.scene.client() as client:

        def update() -> None:
            play.until_begun(of((0,)))
            until(lambda: _state(watch, client).get("live") == 1, "member 0 to end")
            publish(watch)
            play.gate("gate").touch()

        asked: dict[str, Any] = {"groups": 1, "group_size": 2}
        batches = client.sample(prompts, **asked, staleness="withhold", staleness_bound=0)
        with meanwhile(update):
            (batch,) = batches
        members = {names(each.rollout_id): each for each in batch.groups[0]}
        assert [members[0, m].trainable for m in (0, 1)] == [False, True]
        assert {each.outcome for each in members.values()} == {"completed"}
        assert {each.reward for each in members.values()} == {0.0, 1.0}
        assert (batch.report.withheld, batch.report.stale.rollouts) == (1, 0)
        play.until_settled(client)


def test_pace_asks_only_for_what_will_be_used_in_time(play: Play) -> None:
    """With one publish a batch and bound 0, a batch's prompts begin after the publish before it."""
    asked: dict[str, Any] = {"groups": 2, "group_size": 2, "ahead": 3}
    with play.scene.client() as client:
        batches = client.sample(
            play.prompts(**SAMPLES), **asked, staleness="pace", staleness_bound=0
        )
        for batch in batches:
            state = play.sampling(client)
            assert (state["accepted"], state["wanted"]) == (2 * batch.number + 2,) * 2
            assert versions(batch) == {current(client)}
            if batch.number == 3:
                break
            publish(client)
        assert {prompt for prompt, _ in play.begun()} == set(range(8))
        batches.close()
        play.until_settled(client)


def test_none_trains_on_whatever_there_is(play: Play) -> None:
    prompts = [play.prompt("gate", gated=[1], **SAMPLES)]
    with play.scene.client("watch") as watch, play.scene.client() as client:

        def update() -> None:
            play.until_begun(of((0,)))
            until(lambda: _state(watch, client).get("live") == 1, "member 0 to end")
            publish(watch, 3)
            play.gate("gate").touch()

        with meanwhile(update):
            (batch,) = client.sample(prompts, groups=1, group_size=2)
        assert len(versions(batch)) == 2
        assert all(rollout.trainable for rollout in batch.groups[0])


def _state(watch: Client, client: Client) -> dict[str, Any]:
    """Return the state of another client's sampling."""
    found = {each["client_id"]: each for each in watch.status()["samplings"]}
    state: dict[str, Any] = found.get(client.client_id, {})
    return state
