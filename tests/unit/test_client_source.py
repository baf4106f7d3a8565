"""A trainer's prompts behind their thread: asked for one by one, and how they end."""

from collections.abc import Iterator
from threading import Event

from engine.client.source import Source
from engine.records import Task

WAIT_S = 10.0  # for a thread that answers at once


def test_a_source_gives_only_what_is_asked_for() -> None:
    given: list[int] = []

    def counting() -> Iterator[Task]:
        for number in range(9):
            given.append(number)
            yield Task(f"t-{number}", "kind", {})

    source = Source(counting(), WAIT_S)
    assert given == []
    source.ask(2)
    assert [source.take(WAIT_S) is not None for _ in range(2)] == [True, True]
    assert source.take(0.0) is None
    assert (given, source.end) == ([0, 1], "")
    source.close()


def test_a_source_that_blocks_is_noticed_and_its_late_tasks_are_not_lost() -> None:
    go = Event()

    def blocking() -> Iterator[Task]:
        go.wait(WAIT_S)
        yield Task("t-0", "kind", {})

    source = Source(blocking(), -1.0)
    source.ask(1)
    assert source.take(0.0) is None
    assert (source.end, source.is_over) == ("blocked", True)
    assert "gave nothing for" in source.why
    go.set()
    task = source.take(WAIT_S)
    while task is None:  # an end is news too
        task = source.take(WAIT_S)
    assert task.task_id == "t-0"
    source.close()


def test_a_source_is_over_only_once_its_last_task_is_taken() -> None:
    source = Source([Task("t-0", "kind", {})], WAIT_S)
    source.ask(2)
    assert source._thread is not None
    source._thread.join(WAIT_S)
    assert (source.end, source.is_over) == ("ended", False)
    assert source.take(0.0) is not None
    assert source.is_over
