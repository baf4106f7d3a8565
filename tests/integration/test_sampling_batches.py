"""Batches over real processes: who is stopped, who goes on, and what the next batch finds free."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier
from time import monotonic
from typing import Any

import pytest

from engine import Refused

from ..chaos.scene import Scene, running, until
from ..sampling_play import UNIFORM, Play, meanwhile, members_in, of, prompts_in

SLOTS = 8
ROOM = 40  # two samplings of two groups of four, one batch ahead
pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    stages = [
        {"name": "run", "slots": SLOTS, "attempts": 1},
        {"name": "eval", "slots": SLOTS, "attempts": 1},
    ]
    filters = {"paid": "chaoskinds.filters:paid"}
    with (
        TemporaryDirectory(prefix="rq") as folder,
        running(
            Path(folder), stages=stages, limits={"rollouts": ROOM, "group": 8}, filters=filters
        ) as scene,
    ):
        yield scene


@pytest.fixture
def play(scene: Scene, tmp_path: Path) -> Play:
    return Play(scene, tmp_path)


def test_the_redundant_are_stopped_and_the_next_batch_has_every_slot(play: Play) -> None:
    prompts = play.prompts(
        play.prompt("first"), play.prompt("first"), play.prompt("never"), play.prompt("never"),
        gate="second",
    )  # fmt: skip

    def open_first() -> None:
        play.until_begun(of((0, 1, 2, 3)))
        play.gate("first").touch()

    def open_second() -> None:
        play.until_begun(of((4, 5, 6, 7)))
        play.gate("second").touch()

    with play.scene.client() as client:
        batches = client.sample(prompts, groups=2, group_size=2, in_flight=SLOTS)
        with meanwhile(open_first):
            first = next(batches)
        assert prompts_in(first) == {0, 1}
        assert first.report.cancelled.groups == 2
        play.until_left(of((2, 3)))
        until(lambda: first.is_final, "the batch's last figures")
        cancelled = first.report.cancelled
        assert (cancelled.rollouts, cancelled.tokens) == (4, 40)
        assert cancelled.seconds > 0
        assert first.report.kept.rollouts == 4
        with meanwhile(open_second):
            second = next(batches)
        assert second.number == 1
        assert prompts_in(second) < {4, 5, 6, 7}
        assert play.left() >= of((2, 3))


def test_what_is_open_is_carried_over_and_runs_once(play: Play) -> None:
    prompts = [play.prompt(gate) for gate in ("first", "first", "second", "second")]

    def open_first() -> None:
        play.until_begun(of((0, 1, 2, 3)))
        play.gate("first").touch()

    with play.scene.client() as client:
        batches = client.sample(prompts, groups=2, group_size=2, over="carry")
        with meanwhile(open_first):
            first = next(batches)
        assert prompts_in(first) == {0, 1}
        assert (first.report.carried.groups, first.report.cancelled.groups) == (2, 0)
        assert first.is_final
        play.gate("second").touch()
        (second,) = batches
        assert prompts_in(second) == {2, 3}
        assert (second.reason, second.report.kept.groups) == ("complete", 2)
    assert play.left() == set()
    assert play.attempts() == [1] * 8


def test_the_next_batch_fills_while_the_caller_works(play: Play) -> None:
    with play.scene.client() as client:
        batches = client.sample(play.prompts(), groups=2, group_size=2, ahead=1)
        for batch in islice(batches, 3):
            complete = batch.number + 2
            until(lambda: play.sampling(client)["batch"] >= complete, "the next batch")  # noqa: B023
            assert play.sampling(client)["taken"] == batch.number


@pytest.mark.parametrize("ahead", [0, 1])
def test_no_prompt_is_asked_for_once_enough_batches_wait_for_the_caller(
    play: Play, ahead: int
) -> None:
    """One group at a time, so that nothing else is under way when a batch is complete."""
    with play.scene.client() as client:
        prompts = play.prompts()
        asked: dict[str, Any] = {"groups": 2, "group_size": 4, "in_flight": 4}
        for batch in islice(client.sample(prompts, **asked, ahead=ahead), 3):
            complete = batch.number + 1 + ahead
            until(lambda: play.sampling(client)["batch"] == complete, "as many batches")  # noqa: B023
            state = play.sampling(client)
            assert (state["live"], state["wanted"]) == (0, state["accepted"]), state
            assert {prompt for prompt, _ in play.begun()} == set(range(2 * complete))


def test_two_clients_in_room_for_two_batches_each_share_fairly(play: Play) -> None:
    taken: dict[str, list[float]] = {"one": [], "two": []}
    ready = Barrier(2, timeout=60)

    def train(name: str) -> None:
        with play.scene.client(name) as client:
            prompts = play.prompts(run_s=0.02)
            ready.wait()
            for _ in islice(client.sample(prompts, groups=2, group_size=4, ahead=1), 8):
                taken[name].append(monotonic())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, taken))
    assert {name: len(when) for name, when in taken.items()} == {"one": 8, "two": 8}
    first = min(when[-1] for when in taken.values())
    for when in taken.values():
        assert sum(at <= first for at in when) >= 4, taken


def test_room_is_refused_while_others_have_it_and_given_when_they_are_gone(play: Play) -> None:
    what: dict[str, Any] = {"groups": 2, "group_size": 4, "ahead": 1}
    with play.scene.client("one") as one, play.scene.client("two") as two:
        mine = one.sample(play.prompts(), **what)
        next(mine)
        others = two.sample(play.prompts(), **what)
        next(others)
        with play.scene.client("three") as three:
            with pytest.raises(Refused, match="may hold 20 beside 40 of other samplings"):
                next(three.sample(play.prompts(), **what))
            mine.close()
            play.until_settled(one)
            assert len(next(three.sample(play.prompts(), **what)).groups) == 2
        assert len(next(others).groups) == 2


def test_groups_with_few_failed_members_are_kept_if_the_call_says_so(play: Play) -> None:
    prompts = [play.prompt(fails=[0]), play.prompt(fails=[0, 1]), play.prompt()]
    with play.scene.client() as client:
        (batch,) = client.sample(prompts, groups=3, group_size=4, members=3)
        assert batch.reason == "ended"
        assert prompts_in(batch) == {0, 2}
        group = next(group for group in batch.groups if group[0].prompt == 0)
        found = {rollout.rollout_id[-1]: rollout for rollout in group}
        assert (found["0"].outcome, found["0"].reward, found["0"].trainable) == (
            "failed",
            None,
            False,
        )
        assert {found[member].outcome for member in "123"} == {"completed"}
        assert (batch.report.failed.groups, batch.report.kept.rollouts) == (1, 8)


def test_a_failed_member_fails_its_group_and_stops_the_others(play: Play) -> None:
    prompts = [play.prompt("never", gated=[1, 2, 3], fails=[0]), play.prompt()]
    with play.scene.client() as client:
        (batch,) = client.sample(prompts, groups=2, group_size=4)
        assert prompts_in(batch) == {1}
        until(lambda: client.status()["rollouts"] == 0 or play.left(), "its members to be stopped")
        assert batch.report.failed.groups == 1
        play.until_settled(client)
    assert play.left() == {member for member in play.begun() if member[0] == 0} - {(0, 0)}


def test_a_filter_of_the_topology_is_named_and_given_arguments(play: Play) -> None:
    earned = [(1.0, 1.0), (2.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    prompts = [play.prompt(rewards=rewards) for rewards in earned]
    with play.scene.client() as client:
        (batch,) = client.sample(prompts, groups=4, group_size=2, keep=("paid", {"least": 3.5}))
        assert prompts_in(batch) == {2, 3}
        assert (batch.report.kept.groups, batch.report.dropped.groups) == (2, 2)
        with pytest.raises(Refused, match="keep_args"):
            next(client.sample(prompts, groups=1, group_size=2, keep=("paid", {"most": 1})))


def test_a_hopeless_group_is_stopped_early_and_counted(play: Play) -> None:
    bound = ("reward-bounds", {"low": 0.6, "high": 1.0})
    prompts = [
        play.prompt("never", rewards=(0, 0, 1, 1), gated=[2, 3]),
        play.prompt(rewards=UNIFORM),
    ]
    with play.scene.client() as client:
        (batch,) = client.sample(prompts, groups=2, group_size=4, keep=bound, stop_early=True)
        assert prompts_in(batch) == {1}
        assert (batch.report.stopped_early, batch.report.dropped.groups) == (1, 1)
        play.until_settled(client)
    assert members_in(batch) == of((1,), 4)
