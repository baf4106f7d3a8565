"""What a dispatch waits for: the rows of its own task and rollout, and the list of workers."""

import pytest

from engine.ledger import Dispatch, Keep, KeepValue
from engine.ledger.grounds import Grounds
from engine.ledger.instructions import Acked

TASK, MINE, OTHER = 1, 2, 3
WORK = Dispatch("w", TASK, MINE, "r", "g", "t", "k", 0, 1)


def noted(*changes: Keep | KeepValue) -> Grounds:
    """Return grounds where these changes have the positions 1, 2, 3 ..."""
    grounds = Grounds()
    for position, change in enumerate(changes, 1):
        grounds.kept(change, position)
    return grounds


def row(order: int) -> Keep:
    return Keep(order, Acked())


def test_work_that_nothing_was_kept_of_waits_for_nothing() -> None:
    assert noted(row(OTHER), row(OTHER)).of(WORK) == 0


@pytest.mark.parametrize("own", [row(TASK), row(MINE), KeepValue("workers", ["w"])])
def test_work_waits_for_its_own_rows_and_no_later_ones(own: Keep | KeepValue) -> None:
    assert noted(row(OTHER), own, row(OTHER)).of(WORK) == 2


def test_the_last_of_its_rows_counts() -> None:
    assert noted(row(MINE), row(TASK), row(OTHER), row(MINE), row(OTHER)).of(WORK) == 4


def test_other_values_do_not_count() -> None:
    assert noted(KeepValue("client one", 7)).of(WORK) == 0


def test_what_is_durable_is_waited_for_no_more() -> None:
    grounds = noted(row(TASK), row(OTHER), row(MINE), row(TASK))
    grounds.durable(3)
    assert grounds.of(WORK) == 4
    grounds.durable(4)
    assert grounds.of(WORK) == 0
