"""The router's placement, without sockets and clocks."""

from collections import Counter
from itertools import pairwise
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.inference.events import (
    Aborted,
    Answered,
    Asked,
    AskHello,
    BackendAlive,
    BackendGone,
    BackendHeld,
    BackendOpened,
    BackendShut,
    BackendUp,
    ClientGone,
    Closing,
    Deliver,
    Dispatch,
    Drop,
    Event,
    Fail,
    Forget,
    Instruction,
    Lost,
    Refused,
    Released,
    Spent,
    Stop,
    Stopped,
    Tick,
    Welcome,
)
from nodes.inference.fleet import Rules
from nodes.inference.placement import TRIES, Placement
from nodes.inference.policies import LeastLoaded, named

Kind = TypeVar("Kind")
POLICIES = ("sticky-least-loaded", "least-loaded", "round-robin", "random")


class Bench:
    """A placement, a clock that tests move, and everything that came out."""

    def __init__(
        self,
        policy: str = "sticky-least-loaded",
        queue: int = 100,
        capacities: tuple[int, ...] = (),
    ) -> None:
        rules = Rules(queue=queue, idle_s=60.0, lost_after_s=3.0, unplaced_s=10.0)
        self.placement = Placement(named(policy), rules, "router")
        self.now = 0.0
        for index, capacity in enumerate(capacities):
            self.open(f"b{index}", f"sim-{index}", capacity)

    def open(self, backend: str, node: str, capacity: int) -> list[Instruction]:
        out = self.do(BackendUp(backend, node, capacity))
        return [*out, *self.do(BackendOpened(backend))]

    def do(self, event: Event) -> list[Instruction]:
        out = self.placement.handle(event, self.now)
        check(self.placement)
        return out

    def ask(self, request: str, session: str = "", client: str = "c") -> list[Instruction]:
        return self.do(Asked(client, request, session or f"of-{request}"))

    def dispatched(self, request: str, session: str = "") -> Dispatch:
        return only(self.ask(request, session), Dispatch)


def only(instructions: list[Instruction], kind: type[Kind]) -> Kind:
    found = [each for each in instructions if isinstance(each, kind)]
    assert len(found) == 1, instructions
    return found[0]


def kinds(instructions: list[Instruction]) -> list[type]:
    return [type(each) for each in instructions]


def check(placement: Placement) -> None:
    places = Counter(list(placement.unplaced))
    for name, backend in placement.backends.items():
        places.update(list(backend.waiting))
        places.update(backend.running.values())
        assert len(backend.running) <= backend.capacity
        is_full = backend.is_held or len(backend.running) == backend.capacity
        assert is_full or not backend.waiting
        for ticket, request_id in backend.running.items():
            assert placement.requests[request_id].ticket == ticket
        for session in backend.sessions:
            assert placement.sessions[session].backend == name
    assert places == Counter(list(placement.requests))
    for name, session in placement.sessions.items():
        assert not session.backend or name in placement.backends[session.backend].sessions
        for request_id in session.requests:
            assert placement.requests[request_id].session == name
    open_in_sessions = [each for one in placement.sessions.values() for each in one.requests]
    assert sorted(open_in_sessions) == sorted(placement.requests)


def test_a_session_stays_on_its_backend() -> None:
    bench = Bench(capacities=(4, 4))
    first = bench.dispatched("r1", "s")
    for number in range(6):
        bench.ask(f"other-{number}")
    assert bench.do(Answered(first.backend, first.ticket))[0] == Deliver("c", "r1", first.backend)
    assert bench.dispatched("r2", "s").backend == first.backend


def test_new_sessions_go_where_the_fewest_are_open_per_capacity() -> None:
    bench = Bench(capacities=(10, 30))
    placed = Counter(bench.dispatched(f"r{n}").backend for n in range(40))
    assert placed == {"b0": 10, "b1": 30}


def test_equal_backends_are_taken_in_turn_even_when_sessions_end_at_once() -> None:
    bench = Bench(capacities=(4, 4, 4))
    placed = []
    for number in range(9):
        placed.append(bench.dispatched(f"r{number}", f"s{number}").backend)
        bench.do(Released(f"s{number}"))
    assert Counter(placed) == {"b0": 3, "b1": 3, "b2": 3}


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


def test_a_repeated_request_is_answered_once_to_whoever_asked_last() -> None:
    bench = Bench(capacities=(4,))
    ticket = bench.dispatched("r", "s").ticket
    assert bench.ask("r", "s", client="c-again") == []
    assert bench.do(Answered("b0", ticket)) == [Deliver("c-again", "r", "b0")]


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


def test_a_new_backend_ramps_up_instead_of_taking_every_new_session() -> None:
    bench = Bench(capacities=(20, 20))
    for number in range(20):
        bench.ask(f"old-{number}")
    bench.open("new", "sim-9", 20)
    placed = [bench.dispatched(f"r{n}").backend == "new" for n in range(30)]
    assert not any(one and two for one, two in pairwise(placed[:12]))
    assert 8 <= sum(placed) <= 20


@pytest.mark.parametrize("policy", ["round-robin", "random", "least-loaded"])
def test_other_policies_spread_the_turns_of_one_session(policy: str) -> None:
    bench = Bench(policy=policy, capacities=(50, 50))
    placed = Counter(bench.dispatched(f"r{n}", "s").backend for n in range(40))
    assert set(placed) == {"b0", "b1"}


def test_random_placement_repeats_with_its_seed() -> None:
    policies = [named("random", seed=3), named("random", seed=3)]
    for policy in policies:
        for backend in "abc":
            policy.join(backend, 1)
    assert [policies[0].choose() for _ in range(20)] == [policies[1].choose() for _ in range(20)]


def test_an_unknown_policy_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="no policy 'best'; there are sticky-least-loaded"):
        named("best")


def test_the_heap_of_placements_stays_small() -> None:
    policy = LeastLoaded(sticky=True)
    policy.join("a", 10)
    for number in range(10_000):
        policy.weigh("a", number % 10)
    assert len(policy._heap) < 200


NAMES = st.integers(0, 3)
HOWS = ("drain", "move", "evict")
EVENTS = st.one_of(
    st.builds(lambda c, r, s: Asked(f"c{c}", f"r{r}", f"s{s}"), NAMES, st.integers(0, 12), NAMES),
    st.builds(lambda c, r: Aborted(f"c{c}", f"r{r}"), NAMES, st.integers(0, 12)),
    st.builds(lambda s: Released(f"s{s}"), NAMES),
    st.builds(lambda c: ClientGone(f"c{c}"), NAMES),
    st.builds(lambda b, n: BackendUp(f"b{b}", f"sim-{b % 3}", n), NAMES, st.integers(1, 3)),
    st.builds(lambda b: BackendGone(f"b{b}", "gone"), NAMES),
    st.builds(lambda b: BackendOpened(f"b{b}"), NAMES),
    st.builds(lambda b, h: BackendShut(f"b{b}", h), NAMES, st.sampled_from(HOWS)),
    st.builds(lambda b, h: BackendHeld(f"b{b}", held=h), NAMES, st.booleans()),
    st.sampled_from(["answer", "refuse", "answer", "beat", "late", "stopped"]),
    st.just(Tick()),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(POLICIES), st.lists(st.tuples(EVENTS, st.floats(0, 4)), max_size=60))
def test_every_request_ends_once_and_is_in_one_place_until_then(
    policy: str, schedule: list[tuple[Event | str, float]]
) -> None:
    bench, opened = Bench(policy, queue=5), Counter()
    for event, pause in schedule:
        bench.now += pause
        if isinstance(event, Asked) and event.request_id not in bench.placement.requests:
            opened[event.request_id] += 1
        for out in [bench.do(each) for each in real(event, bench.placement)]:
            ended = [each for each in out if isinstance(each, (Deliver, Fail, Drop))]
            opened.subtract(each.request_id for each in ended)
        assert +opened == Counter(list(bench.placement.requests))
        assert bench.placement.waiting() <= 5 + len(bench.placement.backends) * 3 * 2
        assert all(each.tries <= TRIES for each in bench.placement.requests.values())


def real(event: Event | str, placement: Placement) -> list[Event]:
    if isinstance(event, BackendUp):
        return [event, BackendOpened(event.backend)]
    if isinstance(event, BackendOpened | BackendShut | BackendHeld):
        return [event] if event.backend in placement.backends else []
    if not isinstance(event, str):
        return [event]
    if event == "stopped":
        tickets = [(each.backend, ticket) for ticket, each in placement.stopping.items()]
        return [Stopped(*each, 3) for each in tickets[:1]]
    for name, backend in placement.backends.items():
        if event == "beat":
            return [BackendAlive(name, ())]
        for ticket in backend.running:
            if event == "answer":
                return [Answered(name, ticket)]
            if event == "refuse":
                return [Refused(name, ticket, "full", "busy", retry=True)]
    return [Answered("b0", "router.0")]
