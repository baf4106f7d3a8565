"""What becomes of rollouts from old weights."""

from typing import Any

import pytest

from ..sampling_kit import Play, spent


def test_without_a_policy_old_rollouts_are_as_good_as_new_ones() -> None:
    play = Play(groups=1)
    play.age(9, (0, "0-0", 0))
    play.group(0, 1.0, 0.0, policy_version=0)
    assert (play.batches(), play.stale, play.last.withheld) == ([[0]], [], ())


def test_drop_gives_up_groups_with_a_stale_member_that_runs() -> None:
    play = Play(groups=1, staleness="drop", bound=1)
    play.begin(0)
    play.age(1, (0, "0-0", 0))
    assert play.judged == {}
    play.age(2, (0, "0-0", 0))
    assert (play.judged, play.stale, play.stops) == ({0: "stale"}, ["0-0"], [0])
    play.end(0, None, None)
    play.group(1, 1.0, 0.0, policy_version=2)
    assert (play.last.report.stale.groups, play.last.report.stale.rollouts) == (1, 2)


def test_drop_gives_up_groups_with_a_stale_member_that_has_ended() -> None:
    play = Play(groups=2, staleness="drop", bound=0)
    play.begin(0)
    play.end(0, 1.0, policy_version=0)
    play.age(1)
    assert play.judged == {0: "stale"}
    play.begin(1)
    play.end(1, 1.0, policy_version=0)
    assert play.judged[1] == "stale"


@pytest.mark.parametrize("staleness", ["drop", "withhold"])
def test_a_kept_group_that_grows_too_old_leaves_its_batch(staleness: Any) -> None:
    play = Play(groups=2, staleness=staleness, bound=0)
    play.group(0, 1.0, 0.0, policy_version=0)
    assert play.sampler.kept == 1
    play.age(1)
    assert (play.sampler.kept, play.judged) == (0, {0: "stale"})


def test_a_complete_batch_does_not_grow_old() -> None:
    play = Play(groups=1, staleness="drop", bound=0)
    play.group(0, 1.0, 0.0, policy_version=0)
    play.age(5)
    assert (play.batches(), play.judged) == ([[0]], {})


def test_refill_replaces_a_stale_member_that_has_ended() -> None:
    play = Play(groups=1, staleness="refill", bound=0)
    play.begin(0)
    play.end(0, 1.0, policy_version=0)
    play.age(1)
    assert play.sampler.refills() == ((0, 3),)
    play.end(0, 0.0, policy_version=1)
    play.begin(0, rollouts=1)
    assert play.sampler.refills() == ()
    play.end(0, 1.0, policy_version=1)
    assert (play.batches(), play.last.left_out) == ([[0]], ("0-0",))
    report = play.last.report
    assert (report.refilled, report.stale.rollouts, report.kept.rollouts) == (1, 1, 2)
    assert report.stale.groups == 0


def test_refill_replaces_a_stale_member_that_runs() -> None:
    play = Play(groups=1, staleness="refill", bound=0)
    play.begin(0)
    play.end(0, 1.0, policy_version=1)
    play.age(1, (0, "0-1", 0))
    play.age(1, (0, "0-1", 0))
    assert (play.stale, play.sampler.refills()) == (["0-1"], ((0, 3),))
    play.end_one(0, "0-1", None, outcome="stale")
    assert play.judged == {}
    play.begin(0, rollouts=1)
    play.end_one(0, "0-2", 0.0, policy_version=1)
    assert (play.batches(), play.last.left_out) == ([[0]], ("0-1",))


def test_a_stale_member_that_still_runs_is_no_member_of_the_batch() -> None:
    play = Play(groups=1, staleness="refill", bound=0)
    play.begin(0)
    play.age(1, (0, "0-0", 0))
    play.begin(0, rollouts=1)
    play.end_one(0, "0-1", 1.0, policy_version=1)
    play.end_one(0, "0-2", 0.0, policy_version=1)
    assert (play.batches(), play.last.left_out) == ([[0]], ("0-0",))
    assert play.last.report.stale.rollouts == 0
    play.end_one(0, "0-0", None, outcome="stale")
    play.sampler.end_source("ended", 1, "no more", play.now)
    play.heed()
    assert (play.last.number, play.last.report.stale.rollouts, spent(play)) == (1, 1, 3)


def test_a_group_is_refilled_three_times_its_size_and_then_given_up() -> None:
    play = Play(groups=1, size=1, keep="all", staleness="refill", bound=0)
    play.begin(0)
    for version in range(1, 4):
        play.end(0, 1.0, policy_version=-1)
        assert play.sampler.refills() == ((0, version + 1),)
        play.begin(0, rollouts=1)
    play.end(0, 1.0, policy_version=-1)
    assert play.judged == {0: "stale"}
    assert play.sampler.refills() == ()


def test_a_refill_that_comes_after_its_group_was_decided_is_stopped_and_counted() -> None:
    play = Play(groups=1, staleness="refill", bound=0)
    play.begin(0)
    play.age(1, (0, "0-0", 0))
    play.end_one(0, "0-1", None)
    assert play.judged == {0: "failed"}
    play.begin(0, rollouts=1)
    assert play.stops == [0, 0]
    play.end_one(0, "0-0", None, outcome="stale")
    play.end_one(0, "0-2", None, outcome="cancelled")
    play.group(1, 1.0, 0.0, policy_version=1)
    assert (play.last.report.failed.rollouts, spent(play)) == (3, 5)


def test_withhold_keeps_a_group_and_names_what_is_too_old() -> None:
    play = Play(groups=1, staleness="withhold", bound=0)
    play.begin(0)
    play.end(0, 1.0, policy_version=0)
    play.age(1, (0, "0-1", 0))
    assert (play.stale, play.judged) == ([], {})
    play.end(0, 0.0, policy_version=1)
    assert (play.last.withheld, play.last.report.withheld) == (("0-0",), 1)
    assert play.last.report.kept.rollouts == 2


def test_withhold_gives_up_a_group_of_which_nothing_is_young_enough() -> None:
    play = Play(groups=1, staleness="withhold", bound=0)
    play.age(1)
    play.group(0, 1.0, 0.0, policy_version=0)
    assert play.judged == {0: "stale"}


def test_the_report_shows_whether_slow_rollouts_are_lost() -> None:
    play = Play(groups=1, staleness="drop", bound=0)
    play.age(1)
    play.group(0, 1.0, 0.0, policy_version=0, seconds=9.0)
    play.group(1, 1.0, 0.0, policy_version=1, seconds=1.0)
    report = play.last.report
    assert (report.kept_mean_s, report.lost_mean_s) == (1.0, 9.0)
