"""The router's placement when backends are lost, refuse, are shut or stand still."""

from nodes.inference.events import (
    Answered,
    AskHello,
    BackendAlive,
    BackendGone,
    BackendHeld,
    BackendShut,
    ClientGone,
    Closing,
    Deliver,
    Dispatch,
    Drop,
    Fail,
    Forget,
    Lost,
    Refused,
    Stop,
    Stopped,
    Tick,
    Welcome,
)

from ..placement_kit import Bench, kinds, only


def test_a_lost_backends_sessions_move_at_once_and_its_requests_are_tried_again() -> None:
    bench = Bench(capacities=(4, 4))
    first = bench.dispatched("r", "s")
    out = bench.do(BackendGone(first.backend, "gone"))
    assert only(out, Lost).requests == 1
    second = only(out, Dispatch)
    assert second.backend != first.backend
    assert bench.placement.sessions["s"].backend == second.backend


def test_a_request_that_loses_a_second_backend_fails_and_says_that_a_retry_may_help() -> None:
    bench = Bench(capacities=(4, 4, 4))
    first = bench.dispatched("r", "s")
    second = only(bench.do(BackendGone(first.backend, "gone")), Dispatch)
    failed = only(bench.do(BackendGone(second.backend, "gone")), Fail)
    assert (failed.code, failed.retry) == ("backend_lost", True)


def test_a_request_that_only_waited_loses_no_try_with_its_backend() -> None:
    bench = Bench(capacities=(1,))
    bench.ask("r1", "s")
    bench.ask("r2", "s")
    for number in range(1, 4):
        bench.open(f"b{number}", f"sim-{number}", 1)
        bench.do(BackendGone(f"b{number - 1}", "gone"))
    assert "r2" in bench.placement.requests


def test_a_backend_that_is_not_heard_is_lost() -> None:
    bench = Bench(capacities=(4, 4))
    bench.now = 2.0
    bench.do(BackendAlive("b0", ()))
    bench.now = 3.5
    assert only(bench.do(Tick()), Lost).backend == "b1"


def test_a_backend_that_was_given_up_has_to_say_hello_again() -> None:
    bench = Bench(capacities=(4,))
    bench.now = 4.0
    bench.do(Tick())
    assert bench.do(BackendAlive("b0", ())) == [AskHello("b0")]
    assert bench.open("b0", "sim-0", 4) == [Welcome("b0")]


def test_a_new_boot_of_a_node_takes_the_place_of_the_old_one() -> None:
    bench = Bench(capacities=(4,))
    bench.ask("r", "s")
    out = bench.open("b0-again", "sim-0", 4)
    assert only(out, Lost).backend == "b0"
    assert only(out, Dispatch).backend == "b0-again"


def test_an_answer_to_an_old_ticket_is_counted_and_dropped() -> None:
    bench = Bench(capacities=(4, 4))
    first = bench.dispatched("r", "s")
    bench.do(BackendGone(first.backend, "gone"))
    assert bench.do(Answered(first.backend, first.ticket)) == []
    assert bench.placement.counts["late"] == 1
    assert "r" in bench.placement.requests


def test_a_request_without_any_backend_waits_and_then_fails_naming_the_wait() -> None:
    bench = Bench()
    assert bench.ask("r") == []
    bench.now = 10.5
    failed = only(bench.do(Tick()), Fail)
    assert (failed.code, failed.retry) == ("no_backend", True)
    assert "no backend for 10.5 s" in failed.message


def test_requests_that_waited_for_a_backend_go_to_the_first_one() -> None:
    bench = Bench()
    bench.ask("r1")
    bench.ask("r2")
    assert kinds(bench.open("b0", "sim-0", 1)) == [Welcome, Dispatch]
    assert bench.placement.waiting() == 1


def test_a_held_backend_gets_nothing_until_it_is_freed() -> None:
    bench = Bench(capacities=(4,))
    bench.do(BackendHeld("b0", held=True))
    assert bench.ask("r") == []
    assert only(bench.do(BackendHeld("b0", held=False)), Dispatch).request_id == "r"


def test_a_shut_backend_finishes_what_runs_and_the_rest_moves() -> None:
    bench = Bench(capacities=(1,))
    first = bench.dispatched("r1", "s")
    bench.ask("r2", "s")
    assert bench.open("b1", "sim-1", 4) == [Welcome("b1")]
    moved = only(bench.do(BackendShut("b0", "move")), Dispatch)
    assert (moved.backend, moved.request_id) == ("b1", "r2")
    assert bench.do(Answered("b0", first.ticket)) == [Deliver("c", "r1", "b0")]


def test_an_evicted_backend_is_told_to_stop_and_what_ran_is_tried_elsewhere() -> None:
    bench = Bench(capacities=(4, 4))
    first = bench.dispatched("r", "s")
    out = bench.do(BackendShut(first.backend, "evict"))
    assert out[0] == Stop(first.backend, first.ticket)
    second = only(out, Dispatch)
    assert second.backend != first.backend
    assert bench.do(Stopped(first.backend, first.ticket, 5)) == []
    assert "r" in bench.placement.requests


def test_a_backend_that_aborts_unasked_is_replaced() -> None:
    bench = Bench(capacities=(4, 4))
    first = bench.dispatched("r", "s")
    assert only(bench.do(Stopped(first.backend, first.ticket, 5)), Dispatch).request_id == "r"


def test_what_a_client_left_behind_is_stopped() -> None:
    bench = Bench(capacities=(2,))
    mine = bench.dispatched("r1", "s1")
    bench.ask("r2", "s2", client="other")
    out = bench.do(ClientGone("c"))
    assert out == [Stop("b0", mine.ticket), Drop("r1"), Forget("b0", "s1")]
    assert list(bench.placement.sessions) == ["s2"]


def test_a_refusal_that_may_pass_is_tried_on_another_backend() -> None:
    bench = Bench(capacities=(4, 4))
    first = bench.dispatched("r", "s")
    out = bench.do(Refused(first.backend, first.ticket, "full", "busy", retry=True))
    second = only(out, Dispatch)
    assert second.backend != first.backend
    out = bench.do(Refused(second.backend, second.ticket, "full", "busy", retry=True))
    assert only(out, Fail).message == "busy"


def test_a_refusal_that_is_the_callers_fault_is_passed_on() -> None:
    bench = Bench(capacities=(4, 4))
    first = bench.dispatched("r", "s")
    out = bench.do(Refused(first.backend, first.ticket, "too_long", "no room", retry=False))
    assert out == [Fail("c", "r", "too_long", "no room", retry=False)]


def test_a_draining_backend_keeps_its_sessions_and_gets_no_new_one() -> None:
    bench = Bench(capacities=(4, 4))
    kept = bench.dispatched("r1", "s1")
    bench.do(Answered(kept.backend, kept.ticket))
    bench.do(BackendShut(kept.backend, "drain"))
    assert bench.dispatched("r2", "s1").backend == kept.backend
    placed = {bench.dispatched(f"new-{n}").backend for n in range(3)}
    assert kept.backend not in placed


def test_a_ticket_missing_from_two_heartbeats_is_dispatched_again() -> None:
    bench = Bench(capacities=(4,))
    first = bench.dispatched("r")
    assert bench.do(BackendAlive("b0", ())) == [Welcome("b0")]
    again = only(bench.do(BackendAlive("b0", ())), Dispatch)
    assert again.ticket != first.ticket
    assert bench.do(BackendAlive("b0", (again.ticket,))) == [Welcome("b0")]
    assert bench.do(BackendAlive("b0", ())) == [Welcome("b0")]


def test_a_router_that_stops_refuses_what_is_new_and_ends_what_is_open() -> None:
    bench = Bench(capacities=(4,))
    first = bench.dispatched("r1")
    bench.do(Closing())
    assert only(bench.ask("r2"), Fail).code == "draining"
    assert bench.do(Answered("b0", first.ticket)) == [Deliver("c", "r1", "b0")]
