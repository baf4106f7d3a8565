"""How many prompts a sampling wants, and what it takes."""

import pytest

from ..sampling_kit import Play


def test_prompts_are_wanted_one_by_one_and_promised_until_they_come() -> None:
    sampler = Play().sampler
    for _ in range(3):
        sampler.want()
    assert (sampler.wanted, sampler.promised) == (3, 3)
    sampler.accept(1, 2, 0.0)
    assert (sampler.accepted, sampler.promised, sampler.open) == (0, 2, 1)
    sampler.accept(0, 2, 0.0)
    assert (sampler.accepted, sampler.promised, sampler.live) == (2, 1, 4)


def test_in_flight_counts_rollouts_under_way_and_promised_prompts() -> None:
    play = Play(size=4, in_flight=10)
    assert play.want() == 2
    play.begin(0, 1)
    assert play.want() == 0
    play.end(0, 1.0)
    assert play.want() == 0
    play.end(1, 1.0)
    assert play.want() == 1
    assert play.sampler.live + 4 * play.sampler.promised == 10


def test_in_flight_counts_what_is_being_stopped() -> None:
    play = Play(size=2, in_flight=2)
    play.want()
    play.begin(0)
    play.end(0, None)
    assert play.judged == {0: "failed"}
    assert (play.sampler.open, play.want()) == (0, 0)
    play.end(0, None)
    assert play.want() == 1


def test_in_flight_below_a_group_lets_one_group_run() -> None:
    play = Play(size=4, in_flight=1)
    assert play.want() == 1
    play.begin(0)
    assert play.want() == 0
    play.end(0, 1.0, 1.0, 1.0, 1.0)
    assert play.want() == 1


def test_margin_bounds_open_groups_by_what_the_batch_is_expected_to_need() -> None:
    play = Play(groups=4, margin=1.0)
    assert play.want() == 8
    play.begin(*range(8))
    for prompt in range(6):
        play.end(prompt, 1.0, 1.0)
    assert play.want() == 30  # 4 more at 1 of 8 is 32, and two are open


def test_pace_asks_for_no_more_than_the_weights_allow() -> None:
    play = Play(groups=2, staleness="pace", bound=0, ahead=9, keep="all")
    assert play.want() == 2
    play.group(0, 1.0, 1.0)
    play.group(1, 1.0, 1.0)
    assert play.batches() == [[0, 1]]
    assert play.want() == 0
    play.age(1)
    assert play.want() == 2


def test_pace_replaces_groups_that_were_dropped() -> None:
    play = Play(groups=2, staleness="pace", bound=0)
    play.want()
    play.group(0, 1.0, 1.0)
    assert play.want() == 1


@pytest.mark.parametrize("ahead", [0, 1])
def test_batches_fill_ahead_of_the_trainer_as_far_as_it_says(ahead: int) -> None:
    play = Play(groups=1, ahead=ahead)
    for prompt in range(ahead + 1):
        assert play.want() == 1000
        play.group(prompt, 1.0, 0.0)
    assert play.want() == 0
    assert play.sampler.take(1) == [0]
    assert play.want() == 1000


def test_a_source_that_ended_owes_nothing() -> None:
    play = Play()
    for _ in range(5):
        play.sampler.want()
    play.begin(0)
    play.sampler.end_source("ended", 2, "no more", play.now)
    assert play.sampler.promised == 1
    assert play.sampler.room() == 0
    play.sampler.abort("cancelled", "by the user", play.now)
    assert play.sampler.promised == 0


def test_a_prompt_takes_a_whole_group_and_the_refills_that_are_wanted() -> None:
    play = Play(groups=1, size=3, staleness="refill", bound=0)
    assert [play.sampler.allows(0, more) for more in (2, 3, 4)] == [False, True, False]
    play.begin(0)
    assert not play.sampler.allows(0, 1)
    play.age(1, (0, "0-0", 0), (0, "0-1", 0))
    assert [play.sampler.allows(0, more) for more in (1, 2, 3)] == [True, True, False]
    play.sampler.abort("cancelled", "why", play.now)
    assert play.sampler.allows(0, 1), "a refill may come late"
