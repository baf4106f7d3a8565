"""The step loop in simulated time, and the steps of a weight update."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.backends.simulator.schedule import Limits, Request, Scheduler
from nodes.backends.simulator.stepping import StepLoop, StepTimes
from nodes.backends.simulator.updates import Updates
from nodes.inference.messages import Pause, Resume, UpdateStep, UpdateWeights

TIMES = StepTimes(base_s=1.0, prefill_token_s=0.01, decode_sequence_s=0.1)


def make_loop(blocks: int = 1000) -> StepLoop[None]:
    return StepLoop(Scheduler[None](Limits(blocks)), TIMES)


def request(ticket: str, prompt: int = 100, length: int = 3, now: float = 0.0) -> Request[None]:
    names = [(ticket, place) for place in range((prompt + length) // 16)]
    return Request(ticket, prompt, length, names, now, None)


def test_a_lone_request_takes_its_prompt_and_one_step_a_token() -> None:
    loop = make_loop()
    loop.add(request("a"))
    assert loop.advance(4.19) == []
    [ended] = loop.advance(4.21)
    assert (ended.started_at, ended.first_at) == (0.0, 2.0)
    assert ended.ended_at == pytest.approx(4.2)
    assert (loop.due_at, loop.scheduler.counts.steps, loop.scheduler.counts.tokens) == (None, 3, 3)


def test_requests_share_steps_and_a_late_one_joins_at_the_next() -> None:
    loop = make_loop()
    loop.add(request("a", length=10))
    loop.advance(0.5)
    loop.add(request("b", length=1, now=0.5))
    [ended] = loop.advance(4.2)
    assert (ended.ticket, ended.started_at) == ("b", 2.0)
    assert ended.ended_at == pytest.approx(2.0 + 1.0 + 1.0 + 0.1)


def test_time_is_made_up_when_the_process_was_away() -> None:
    loop = make_loop()
    loop.add(request("a", prompt=1, length=5))
    assert [each.ended_at for each in loop.advance(100.0)] == [pytest.approx(5.41)]


def test_a_slow_server_takes_longer_for_each_step() -> None:
    loop = make_loop()
    loop.slowdown = 3.0
    loop.add(request("a", length=1))
    assert [each.ended_at for each in loop.advance(100.0)] == [pytest.approx(6.0)]


def test_an_aborted_request_never_ends_and_says_what_it_had() -> None:
    loop = make_loop()
    loop.add(request("a"))
    loop.advance(2.0)
    aborted = loop.abort("a", 2.5)
    assert aborted is not None
    assert (aborted.emitted, aborted.ended_at) == (1, 2.5)
    assert loop.abort("a", 2.5) is None
    assert loop.advance(100.0) == []
    assert (len(loop), loop.due_at) == (0, None)


def test_a_cleared_loop_starts_afresh() -> None:
    loop = make_loop()
    loop.add(request("a"))
    loop.pause("closed")
    loop.clear()
    loop.add(request("b", prompt=100, length=1, now=50.0))
    assert [each.ended_at for each in loop.advance(60.0)] == [52.0]


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50), st.integers(1, 8)), max_size=20))
def test_every_request_ends_once_in_order_and_after_it_arrived(
    arrivals: list[tuple[float, int, int]],
) -> None:
    loop, now, ended = make_loop(blocks=10), 0.0, []
    for number, (pause, prompt, length) in enumerate(arrivals):
        now += pause
        ended += loop.advance(now)
        loop.add(request(str(number), prompt, length, now))
    ended += loop.advance(now + 10_000)
    assert sorted(each.ticket for each in ended) == sorted(map(str, range(len(arrivals))))
    for each in ended:
        assert each.emitted == each.length
        times = each.arrived_at, each.started_at, each.first_at, each.ended_at
        assert None not in times
        assert list(times) == sorted(times)  # type: ignore[type-var]
    assert [each.ended_at for each in ended] == sorted(each.ended_at or 0 for each in ended)


def answer(step: str, version: int, update: str = "u") -> list[UpdateStep]:
    return [UpdateStep(update, step, version)]  # type: ignore[arg-type]


def test_a_kept_request_goes_on_with_the_new_version() -> None:
    loop = make_loop()
    updates = Updates(loop)
    loop.add(request("a", length=4))
    loop.advance(2.5)
    assert updates.pause(Pause("u", "keep"), 2.5) == []
    assert updates.settle() == []
    loop.advance(3.2)
    assert updates.settle() == answer("pause", 0)
    updates.change(UpdateWeights("u", 7, ""))
    assert updates.settle() == answer("update_weights", 7)
    assert loop.advance(500.0) == []
    updates.resume(Resume("u"), 500.0)
    assert updates.settle() == answer("resume", 7)
    [ended] = loop.advance(600.0)
    assert ended.marks == [(0, 0), (2, 7)]
    assert ended.ended_at == pytest.approx(502.2)


def test_waiting_lets_end_what_has_begun_and_holds_back_the_rest() -> None:
    loop = make_loop()
    updates = Updates(loop)
    loop.add(request("a"))
    loop.advance(0.5)
    updates.pause(Pause("u", "wait"), 0.5)
    loop.add(request("b", length=1, now=0.6))
    assert updates.settle() == []
    assert [each.ticket for each in loop.advance(50.0)] == ["a"]
    assert updates.settle() == answer("pause", 0)
    updates.change(UpdateWeights("u", 1, ""))
    updates.resume(Resume("u"), 60.0)
    [ended] = loop.advance(70.0)
    assert ended.marks == [(0, 1)]


def test_aborting_ends_what_has_tokens_and_the_rest_goes_on_later() -> None:
    loop = make_loop()
    updates = Updates(loop)
    loop.add(request("a", length=5))
    loop.advance(2.5)
    loop.add(request("b", now=2.5))
    [aborted] = updates.pause(Pause("u", "abort"), 2.5)
    assert (aborted.ticket, aborted.emitted, loop.tickets()) == ("a", 1, ("b",))
    assert loop.advance(50.0) == []
    assert updates.settle() == answer("pause", 0)
    updates.resume(Resume("u"), 50.0)
    assert [each.ticket for each in loop.advance(90.0)] == ["b"]


def test_a_repeated_step_is_answered_like_the_first() -> None:
    loop = make_loop()
    updates = Updates(loop)
    for _ in range(2):
        updates.pause(Pause("u", "keep"), 0.0)
        assert updates.settle() == answer("pause", 0)
    for _ in range(2):
        updates.change(UpdateWeights("u", 3, ""))
        assert updates.settle() == answer("update_weights", 3)
    updates.resume(Resume("u"), 0.0)
    updates.pause(Pause("u", "keep"), 0.0)
    assert updates.settle() == answer("resume", 3) + answer("pause", 0)
    loop.add(request("a"))
    assert len(loop.advance(100.0)) == 1


def test_a_pause_is_done_again_for_a_router_that_started_again() -> None:
    loop = make_loop()
    updates = Updates(loop)
    updates.pause(Pause("u", "keep"), 0.0)
    assert updates.settle() == answer("pause", 0)
    loop.clear()
    updates.clear()
    updates.pause(Pause("u", "keep"), 1.0)
    assert updates.settle() == answer("pause", 0)
    assert loop.is_still
    updates.change(UpdateWeights("u", 2, ""))
    assert updates.settle() == answer("update_weights", 2)


def test_weights_do_not_change_under_a_running_step() -> None:
    loop = make_loop()
    updates = Updates(loop)
    loop.add(request("a"))
    updates.pause(Pause("u", "keep"), 0.0)
    updates.change(UpdateWeights("u", 3, ""))
    [refused] = updates.settle()
    assert (refused.step, refused.policy_version) == ("update_weights", 0)
    assert "pause first" in refused.error
