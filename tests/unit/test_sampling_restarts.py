"""A sampling after a restart: nothing is judged or counted twice, and nothing is left out."""

import pytest

from ..sampling_kit import Play, member


def test_a_restart_goes_on_where_it_was() -> None:
    play = Play(groups=3, over="carry")
    play.group(0, 1.0, 0.0)
    play.group(1, 1.0, 1.0)
    play.begin(2, 4)
    play.end(2, 1.0)
    play.now += 5.0
    again = play.restart()
    assert (again.sampler.kept, again.sampler.open, again.sampler.live) == (1, 2, 3)
    assert (again.sampler.accepted, again.sampler.verdicts) == (3, {1: "dropped"})
    again.end(2, 0.0)
    again.group(3, 1.0, 0.0)
    assert (again.last.prompts, again.last.number) == ((0, 2, 3), 0)
    assert again.last.report.dropped.groups == 1
    assert again.last.report.seconds == pytest.approx(5.0)


def test_a_restart_judges_what_ended_and_was_not_judged() -> None:
    play = Play(groups=1)
    play.begin(0, 1, 2)
    state = play.sampler.state(play.now)
    for prompt in (0, 1):
        play.ended[prompt] = {f"{prompt}-{n}": member(f"{prompt}-{n}", float(n)) for n in range(2)}
    again = play.restart(state)
    assert again.batches() == [[0]], "one group and no more"
    assert again.judged == {1: "cancelled", 2: "cancelled"}


def test_a_restart_may_complete_the_last_batch_with_groups_still_open() -> None:
    play = Play(groups=1)
    play.begin(0, 1, 2)
    play.sampler.end_source("ended", 3, "no more", play.now)
    state = play.sampler.state(play.now)
    play.ended[0] = {f"0-{n}": member(f"0-{n}", float(n)) for n in range(2)}
    again = play.restart(state)
    assert (again.batches(), again.last.last) == ([[0]], True)
    assert again.judged == {1: "cancelled", 2: "cancelled"}


def test_a_restart_takes_up_prompts_that_its_state_did_not_know() -> None:
    play = Play(groups=1)
    state = play.sampler.state(play.now)
    play.begin(0)
    again = play.restart(state)
    assert (again.sampler.accepted, again.sampler.live, again.sampler.open) == (1, 2, 1)


def test_a_restart_after_the_last_batch_cancels_what_it_did_not_know() -> None:
    play = Play(groups=1)
    play.begin(0)
    play.sampler.abort("cancelled", "why", play.now)
    state = play.sampler.state(play.now)
    play.begin(1)
    again = play.restart(state)
    assert again.judged == {1: "cancelled"}
    again.end(0, None, None)
    again.end(1, None, None)
    assert again.last.report.cancelled.rollouts == 4
    assert again.sealed[-1][1]


def test_a_restart_counts_what_ended_late_and_was_not_counted() -> None:
    play = Play(groups=1, size=3)
    play.begin(0, 1)
    play.end(0, 1.0, 0.0, 0.0)
    play.end(1, None)
    state = play.sampler.state(play.now)
    play.ended[1]["1-1"] = member("1-1", None)
    again = play.restart(state)
    assert (again.stops, again.sampler.live) == ([1], 1)
    assert again.sampler.sealed[0].report.cancelled.rollouts == 2
    again.end(1, None)
    assert again.last.report.cancelled.rollouts == 3
    assert again.sealed[-1][1]


def test_a_restart_stops_stale_rollouts_again_and_still_wants_their_refills() -> None:
    play = Play(groups=1, staleness="refill", bound=0)
    play.begin(0)
    play.age(1, (0, "0-0", 0))
    again = play.restart()
    assert again.stale == ["0-0"]
    assert again.sampler.refills() == ((0, 3),)
    again.begin(0, rollouts=1)
    again.end_one(0, "0-1", 1.0, policy_version=1)
    again.end_one(0, "0-2", 0.0, policy_version=1)
    assert (again.batches(), again.last.left_out) == ([[0]], ("0-0",))


def test_a_restart_under_new_weights_gives_up_a_kept_group_that_is_too_old() -> None:
    play = Play(groups=2, staleness="drop", bound=0)
    play.group(0, 1.0, 0.0, policy_version=0)
    state = play.sampler.state(play.now)
    play.sampler.version = 1
    assert play.restart(state).judged == {0: "stale"}


def test_a_restart_keeps_untaken_batches_and_forgets_taken_ones() -> None:
    play = Play(groups=1, ahead=2)
    for prompt in range(3):
        play.group(prompt, 1.0, 0.0)
    play.sampler.take(1)
    again = play.restart()
    assert [batch.number for batch in again.sampler.sealed] == [1, 2]
    assert (again.sampler.taken, again.sampler.number) == (1, 3)
    assert again.sampler.take(9) == [1, 2]
    assert again.sampler.taken == 3


def test_a_verdict_is_kept_until_it_is_forgotten() -> None:
    play = Play()
    play.group(0, 1.0, 1.0)
    before = play.sampler.changes
    play.sampler.forget(0)
    play.sampler.forget(0)
    assert (play.sampler.verdicts, play.sampler.changes) == ({}, before + 1)
