"""The memory that guardian and host share: what is held, and whose deadline has passed."""

import os
from collections.abc import Iterator

import pytest

from nodes.stage.table import SlotTable, shared_memory


@pytest.fixture
def table() -> Iterator[SlotTable]:
    descriptor = shared_memory(8)
    yield SlotTable(descriptor, 8)
    os.close(descriptor)


def test_every_slot_in_use_is_an_entry_the_last_one_too(table: SlotTable) -> None:
    table.begin(1, ("first", 2), 10.0)
    table.begin(8, ("last", 1), 20.0)
    table.finish(8)
    table.begin(4, ("gone", 1), 5.0)
    table.clear(4)
    found = [(entry.slot, entry.held, entry.running, entry.deadline) for entry in table.entries()]
    assert found == [(1, ("first", 2), True, 10.0), (8, ("last", 1), False, 20.0)]


def test_only_a_running_attempt_whose_deadline_has_passed_is_due(table: SlotTable) -> None:
    table.begin(2, ("short", 1), 10.0)
    table.begin(7, ("long", 1), 30.0)
    assert not table.is_any_due(10.0)
    assert table.is_any_due(10.1)
    table.finish(2)
    assert not table.is_any_due(20.0)
    table.wipe()
    assert not table.is_any_due(1e9)
