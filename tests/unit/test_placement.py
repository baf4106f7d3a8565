"""The router's placement, without sockets and clocks: sessions, queues and aborts."""

import pytest

from nodes.inference.events import (
    Aborted,
    Answered,
    BackendAlive,
    BackendGone,
    Deliver,
    Dispatch,
    Drop,
    Fail,
    Forget,
    Refused,
    Released,
    Spent,
    Stop,
    Stopped,
    Tick,
)

from ..placement_kit import Bench, kinds, only


def test_a_session_stays_on_its_backend() -> None:
    bench = Bench(capacities=(4, 4))
    first = bench.dispatched("r1", "s")
    for number in range(6):
        bench.ask(f"other-{number}")
    assert bench.do(Answered(first.backend, first.ticket))[0] == Deliver("c", "r1", first.backend)
    assert bench.dispatched("r2", "s").backend == first.backend


def test_a_release_gives_room_back_and_reaches_the_backend() -> None:
    bench = Bench(capacities=(4,))
    ticket = bench.dispatched("r", "s").ticket
    bench.do(Answered("b0", ticket))
    assert bench.do(Released("s")) == [Forget("b0", "s")]
    assert bench.do(Released("s")) == []
    assert not bench.placement.sessions


def test_a_release_stops_what_its_session_still_runs() -> None:
    bench = Bench(capacities=(4,))
    ticket = bench.dispatched("r", "s").ticket
    assert bench.do(Released("s")) == [Stop("b0", ticket), Drop("r"), Forget("b0", "s")]


def test_a_session_without_a_turn_for_too_long_is_released_but_not_one_that_waits_for_it() -> None:
    bench = Bench(capacities=(4,))
    bench.do(Answered("b0", bench.dispatched("r", "idle").ticket))
    bench.dispatched("r2", "busy")
    bench.now = 61.0
    bench.do(BackendAlive("b0", ("router.2",)))
    assert bench.do(Tick()) == [Forget("b0", "idle")]
    assert list(bench.placement.sessions) == ["busy"]


def test_requests_over_a_backends_capacity_wait_in_order() -> None:
    bench = Bench(capacities=(1,))
    first = bench.dispatched("r1")
    assert bench.ask("r2") == []
    assert bench.ask("r3") == []
    out = bench.do(Answered("b0", first.ticket))
    assert out[0] == Deliver("c", "r1", "b0")
    assert only(out, Dispatch).request_id == "r2"


def test_requests_over_the_queue_are_refused_and_may_be_tried_again() -> None:
    bench = Bench(queue=2, capacities=(1,))
    for name in ("running", "w1", "w2"):
        bench.ask(name)
    refused = only(bench.ask("w3"), Fail)
    assert (refused.code, refused.retry) == ("full", True)
    assert "w3" not in bench.placement.requests


def test_a_free_backend_takes_a_request_although_the_queue_is_full() -> None:
    bench = Bench(policy="round-robin", queue=1, capacities=(1, 1))
    placed = [bench.ask(f"r{n}") for n in range(3)]
    assert [kinds(out) for out in placed] == [[Dispatch], [Dispatch], []]


def test_a_repeated_request_is_answered_once_to_whoever_asked_last() -> None:
    bench = Bench(capacities=(4,))
    ticket = bench.dispatched("r", "s").ticket
    assert bench.ask("r", "s", client="c-again") == []
    assert bench.do(Answered("b0", ticket)) == [Deliver("c-again", "r", "b0")]


def test_an_abort_frees_the_place_for_the_next() -> None:
    bench = Bench(capacities=(1,))
    first = bench.dispatched("r1")
    bench.ask("r2")
    out = bench.do(Aborted("c", "r1"))
    assert out[:2] == [Stop("b0", first.ticket), Drop("r1")]
    assert only(out, Dispatch).request_id == "r2"
    assert bench.do(Aborted("c", "r1")) == [Spent("c", "r1", 0)]


def test_whoever_aborts_is_told_what_the_backend_had_sampled() -> None:
    bench = Bench(capacities=(1,))
    ticket = bench.dispatched("r").ticket
    bench.do(Aborted("c", "r"))
    assert bench.do(Stopped("b0", ticket, 17)) == [Spent("c", "r", 17)]
    assert bench.do(Stopped("b0", ticket, 17)) == []


def test_an_answer_that_was_on_its_way_tells_the_count_of_an_aborted_request() -> None:
    bench = Bench(capacities=(2,))
    tickets = [bench.dispatched(name).ticket for name in ("r1", "r2")]
    for name in ("r1", "r2"):
        bench.do(Aborted("c", name))
    assert bench.do(Answered("b0", tickets[0], 9)) == [Spent("c", "r1", 9)]
    refused = Refused("b0", tickets[1], "backend_error", "broke", retry=True)
    assert bench.do(refused) == [Spent("c", "r2", 0)]


def test_a_request_that_waited_has_spent_nothing_when_it_is_aborted() -> None:
    bench = Bench(capacities=(1,))
    bench.ask("running")
    bench.ask("waits")
    assert bench.do(Aborted("c", "waits")) == [Spent("c", "waits", 0), Drop("waits")]


@pytest.mark.parametrize("gone", [True, False])
def test_nobody_waits_long_for_the_count_of_a_backend_that_does_not_tell(gone: bool) -> None:
    bench = Bench(capacities=(4, 4))
    first = bench.dispatched("r")
    bench.do(Aborted("c", "r"))
    bench.now = 2.5
    out = bench.do(BackendGone(first.backend, "gone") if gone else Tick())
    assert only(out, Spent) == Spent("c", "r", 0)


def test_a_session_keeps_the_salt_of_its_start_wherever_it_goes() -> None:
    bench = Bench(capacities=(4, 4))
    bench.placement.salt = "7"
    first = bench.dispatched("r1", "s")
    bench.placement.salt = "8"
    assert first.salt == "7"
    assert only(bench.do(BackendGone(first.backend, "gone")), Dispatch).salt == "7"
    assert bench.dispatched("r2", "new").salt == "8"
