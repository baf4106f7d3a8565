"""How long is waited before what has ended is started again."""

import pytest

from engine.process import Backoff


def test_a_delay_doubles_while_lives_are_short_up_to_the_longest() -> None:
    backoff = Backoff(short_s=5.0, first_s=0.2, most_s=1.0)
    assert [backoff.ended(4.9) for _ in range(5)] == pytest.approx([0.2, 0.4, 0.8, 1.0, 1.0])
    assert backoff.short_lives == 5


def test_a_long_life_is_started_again_at_once_and_ends_the_row() -> None:
    backoff = Backoff(short_s=5.0, first_s=0.2, most_s=5.0)
    backoff.ended(0.1)
    assert (backoff.ended(5.0), backoff.short_lives) == (0.0, 0)
    assert backoff.ended(0.1) == pytest.approx(0.2)


def test_any_number_of_short_lives_has_a_delay() -> None:
    backoff = Backoff(short_s=60.0, first_s=1.0, most_s=60.0, short_lives=100_000)
    assert backoff.ended(0.0) == 60.0
