"""Verdicts, batches, their reports, and how the last one comes about."""

from typing import Any

import pytest

from ..sampling_kit import Play, spent


def test_a_batch_is_complete_at_its_last_informative_group() -> None:
    play = Play(groups=2)
    play.group(0, 1.0, 1.0)
    play.group(1, 1.0, 0.0)
    assert (play.judged, play.batches()) == ({0: "dropped"}, [])
    play.group(2, 0.0, 1.0)
    [(batch, final)] = play.sealed
    assert (batch.number, batch.reason, batch.why, final, batch.last) == (
        0,
        "complete",
        "",
        True,
        False,
    )
    assert batch.prompts == (1, 2)
    report = batch.report
    assert (report.kept.groups, report.kept.rollouts, report.kept.tokens) == (2, 4, 40)
    assert (report.dropped.groups, report.dropped.seconds) == (1, 4.0)
    assert report.informative_share == pytest.approx(2 / 3)
    assert report.wasted_tokens == 20


def test_the_rest_is_cancelled_and_counted_when_it_ends() -> None:
    play = Play(groups=1, size=3)
    play.begin(0, 1)
    play.end(1, 1.0)
    play.end(0, 1.0, 0.0, 0.0)
    assert (play.judged, play.stops) == ({1: "cancelled"}, [1])
    [(batch, final)] = play.sealed
    assert (batch.report.cancelled.groups, batch.report.cancelled.rollouts, final) == (1, 1, False)
    play.end(1, None)
    assert len(play.sealed) == 1
    play.end(1, None)
    assert [final for _, final in play.sealed] == [False, True]
    assert play.last.report.cancelled.rollouts == 3
    assert play.last.report.cancelled.groups == 1
    assert play.sampler.live == 0


def test_the_rest_is_carried_over_and_judged_by_the_next_batch() -> None:
    play = Play(groups=1, over="carry")
    play.begin(0, 1)
    play.end(1, 1.0)
    play.end(0, 1.0, 0.0)
    assert (play.judged, play.stops) == ({}, [])
    assert play.sealed[0][1]
    assert (play.last.report.carried.groups, play.last.report.carried.rollouts) == (1, 1)
    play.end(1, 0.0)
    assert play.batches() == [[0], [1]]
    assert spent(play) == 4


def test_a_batch_taken_before_it_is_final_is_told_once_more() -> None:
    play = Play(groups=1)
    play.begin(0, 1)
    play.end(0, 1.0, 0.0)
    assert play.sampler.take(1) == [0]
    assert play.sampler.take(1) == []
    play.end(1, None, None)
    assert play.last.number == 0
    assert play.last.report.cancelled.rollouts == 2
    assert play.sealed[-1][1]
    play.sampler.take(1)
    assert play.sampler.sealed == []


def test_what_ends_of_a_dropped_group_after_the_last_batch_is_counted_by_that() -> None:
    play = Play(groups=1, size=2, keep="all")
    play.begin(0, 1)
    play.end(1, None)
    assert play.judged == {1: "failed"}
    play.sampler.end_source("ended", 2, "no more", play.now)
    play.end(0, 1.0, 1.0)
    assert (play.last.last, play.sealed[-1][1]) == (True, False)
    play.end(1, None)
    assert (play.last.report.failed.groups, play.last.report.failed.rollouts) == (1, 2)
    assert play.sealed[-1][1]


@pytest.mark.parametrize(
    ("members", "rewards", "verdict"),
    [
        (0, [None], "failed"),
        (1, [None, None], "failed"),
        (2, [None, None], "failed"),
        (2, [None, 1.0, 1.0], "dropped"),
        (2, [None, 1.0, 0.0], "kept"),
        (1, [None, 1.0, 0.0], "kept"),
        (3, [1.0, 1.0, None], "failed"),
    ],
)
def test_failed_members_are_accepted_up_to_the_policy(
    members: int, rewards: list[float | None], verdict: str
) -> None:
    play = Play(groups=2, size=3, members=members)
    if members == 1 and verdict == "failed":
        rewards = [None, None, None]
    play.begin(0)
    play.end(0, *rewards)
    assert play.judged.get(0, "kept" if play.sampler.kept else "none") == verdict
    assert (play.stops == [0]) == (len(rewards) < 3)


@pytest.mark.parametrize("outcome", ["cancelled", "stale", "failed"])
def test_only_what_was_evaluated_is_good(outcome: Any) -> None:
    play = Play(groups=1)
    play.begin(0)
    play.end(0, 1.0, outcome=outcome)
    assert play.judged == {0: "failed"}


@pytest.mark.parametrize(("stop_early", "early"), [(True, 1), (False, 0)])
def test_a_hopeless_group_is_stopped_early_if_the_call_says_so(
    stop_early: bool, early: int
) -> None:
    bounds = {"low": 0.4, "high": 0.6}
    play = Play(groups=1, size=4, keep="reward-bounds", keep_args=bounds, stop_early=stop_early)
    play.begin(0)
    play.end(0, 1.0, 1.0, 1.0)
    assert (play.judged == {0: "dropped"}) == stop_early
    play.end(0, 1.0)
    play.group(1, 1.0, 1.0, 0.0, 0.0)
    assert play.last.report.stopped_early == early
    assert (play.last.report.dropped.groups, play.last.report.dropped.rollouts) == (1, 4)


def test_what_early_termination_saved_is_estimated_from_durations() -> None:
    play = Play(groups=2, size=1, keep="all")
    play.begin(0, 1)
    play.now += 9.0
    play.end(0, 1.0)
    play.begin(2)
    play.now += 1.0
    play.end(1, 1.0)
    assert play.last.report.saved_s == pytest.approx((8.0 + 9.0) / 2)


def test_a_filter_that_raises_ends_the_sampling_with_its_words() -> None:
    play = Play(groups=2, keep="reward-bounds", keep_args={"low": "x"})
    play.begin(0, 1)
    play.sampler.end_source("ended", 9, "no more", play.now)
    play.end(0, 1.0, 0.0)
    assert (play.last.reason, play.last.last) == ("filter", True)
    assert "reward-bounds" in play.last.why
    assert play.judged == {0: "failed", 1: "cancelled"}
    play.end(1, 1.0, 1.0)
    assert len(play.batches()) == 2
    assert (play.last.number, play.sealed[-1][1], spent(play)) == (0, True, 4)


@pytest.mark.parametrize("end", ["ended", "failed", "blocked"])
def test_a_source_that_ends_leaves_a_last_batch(end: Any) -> None:
    play = Play(groups=3)
    play.begin(0, 1)
    play.sampler.end_source(end, 2, "why", play.now)
    play.end(0, 1.0, 0.0)
    assert play.sealed == []
    play.end(1, 1.0, 1.0)
    assert (play.last.reason, play.last.why, play.last.last) == (end, "why", True)
    assert play.last.prompts == (0,)
    assert play.sampler.is_over


def test_a_source_that_ends_at_once_leaves_an_empty_batch() -> None:
    play = Play()
    play.sampler.end_source("ended", 0, "why", play.now)
    play.heed()
    assert (play.last.prompts, play.last.last) == ((), True)


def test_a_source_that_ends_waits_for_prompts_on_their_way() -> None:
    play = Play(groups=3)
    play.sampler.end_source("ended", 2, "why", play.now)
    play.group(1, 1.0, 0.0)
    assert play.sealed == []
    play.group(0, 1.0, 0.0)
    assert (play.last.prompts, play.last.reason) == ((1, 0), "ended")


def test_a_source_that_ends_with_a_full_batch_makes_that_the_last() -> None:
    play = Play(groups=1)
    play.begin(0)
    play.sampler.end_source("ended", 1, "why", play.now)
    play.end(0, 1.0, 0.0)
    assert (play.last.reason, play.last.last) == ("complete", True)
    play.sampler.end_source("failed", 1, "again", play.now)
    assert play.sampler.source == "ended"


def test_a_source_that_ends_between_batches_leaves_an_empty_one() -> None:
    play = Play(groups=1)
    play.group(0, 1.0, 0.0)
    play.sampler.end_source("ended", 1, "why", play.now)
    play.heed()
    assert [(b.number, b.prompts, b.last) for b, _ in play.sealed] == [
        (0, (0,), False),
        (1, (), True),
    ]


def test_a_source_that_ends_leaves_carried_groups_to_the_last_batch() -> None:
    play = Play(groups=1, over="carry")
    play.begin(0, 1)
    play.sampler.end_source("ended", 2, "why", play.now)
    play.end(0, 1.0, 0.0)
    assert not play.last.last
    play.end(1, 1.0, 1.0)
    assert (play.last.number, play.last.prompts, play.last.last) == (1, (), True)
    assert play.last.report.dropped.groups == 1


@pytest.mark.parametrize("reason", ["cancelled", "full"])
@pytest.mark.parametrize("over", ["cancel", "carry"])
def test_an_abort_completes_the_last_batch_with_what_is_kept(reason: Any, over: Any) -> None:
    play = Play(groups=3, over=over)
    play.group(0, 1.0, 0.0)
    play.begin(1)
    play.sampler.abort(reason, "why", play.now)
    play.heed()
    assert (play.last.prompts, play.last.reason, play.last.last) == ((0,), reason, True)
    assert (play.judged, play.stops) == ({1: "cancelled"}, [1])
    play.sampler.abort(reason, "twice", play.now)
    play.sampler.end_source("ended", 0, "late", play.now)
    play.end(1, None, None)
    assert len(play.sealed) == 2
    assert (play.last.why, play.sealed[-1][1]) == ("why", True)


def test_a_prompt_that_comes_after_an_abort_is_cancelled() -> None:
    play = Play(groups=3)
    play.begin(0)
    play.sampler.abort("cancelled", "why", play.now)
    play.begin(1)
    assert play.judged == {0: "cancelled", 1: "cancelled"}
    play.end(0, None, None)
    assert not any(final for _, final in play.sealed)
    play.end(1, None, None)
    assert (play.last.report.cancelled.groups, play.last.report.cancelled.rollouts) == (2, 4)
    told = play.last
    play.group(2, None, None)
    assert play.judged[2] == "cancelled"
    assert play.sampler.sealed == [told], "a final report does not change"
