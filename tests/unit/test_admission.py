"""New sessions wait while as many are open as the backends' caches hold."""

from hypothesis import given
from hypothesis import strategies as st

from nodes.inference.events import (
    Aborted,
    Answered,
    Asked,
    BackendGone,
    BackendOpened,
    BackendUp,
    Deliver,
    Dispatch,
    Event,
    Fail,
    Instruction,
    Released,
    Tick,
)
from nodes.inference.fleet import Rules
from nodes.inference.placement import Placement
from nodes.inference.policies import named


class Site:
    """A placement with two sessions for each of its backends."""

    def __init__(self, backends: int = 2, sessions: int = 2) -> None:
        rules = Rules(100, idle_s=60.0, lost_after_s=1e9, unplaced_s=5.0, sessions=sessions)
        self.placement = Placement(named("sticky-least-loaded"), rules, "router")
        self.now = 0.0
        for number in range(backends):
            self.open(f"b{number}")

    def open(self, name: str) -> list[str]:
        self.do(BackendUp(name, name, 8))
        return dispatched(self.do(BackendOpened(name)))

    def do(self, event: Event) -> list[Instruction]:
        return self.placement.handle(event, self.now)

    def ask(self, session: str, turn: int = 1) -> list[str]:
        return dispatched(self.do(Asked("c", f"{session}.{turn}", session)))


def dispatched(out: list[Instruction]) -> list[str]:
    return [each.request_id for each in out if isinstance(each, Dispatch)]


def test_a_session_too_many_waits_until_one_ends_and_the_oldest_goes_first() -> None:
    site = Site()
    assert [site.ask(session) for session in "abcdef"] == [
        *(["a.1"], ["b.1"], ["c.1"], ["d.1"]),
        *([], []),
    ]
    assert site.placement.counts["held_back"] == 2
    assert dispatched(site.do(Released("b"))) == ["e.1"]
    assert dispatched(site.do(Released("a"))) == ["f.1"]


def test_a_session_that_has_begun_is_never_held_back() -> None:
    site = Site()
    for session in "abcde":
        site.ask(session)
    [ticket] = [
        ticket
        for each in site.placement.backends.values()
        for ticket, request_id in each.running.items()
        if request_id == "a.1"
    ]
    backend = site.placement.sessions["a"].backend
    assert isinstance(site.do(Answered(backend, ticket))[0], Deliver)
    assert site.ask("a", turn=2) == ["a.2"]
    assert len(dispatched(site.do(BackendGone("b0", "killed")))) >= 1
    assert {each.backend for name, each in site.placement.sessions.items() if name != "e"} == {"b1"}
    assert list(site.placement.unplaced) == ["e.1"]


def test_another_backend_makes_room() -> None:
    site = Site(backends=1)
    for session in "abcde":
        site.ask(session)
    assert site.open("b1") == ["c.1", "d.1"]
    assert list(site.placement.unplaced) == ["e.1"]


def test_waiting_for_room_is_no_failure_and_waiting_for_a_backend_is_one() -> None:
    site = Site(backends=1, sessions=1)
    site.ask("a")
    site.ask("b")
    site.now = 50.0
    assert not site.do(Tick())
    site.do(BackendGone("b0", "killed"))
    site.now = 54.9
    assert not site.do(Tick())
    site.now = 55.1
    failed = [each.request_id for each in site.do(Tick()) if isinstance(each, Fail)]
    assert sorted(failed) == ["a.1", "b.1"]


def test_who_gives_up_waiting_takes_no_room() -> None:
    site = Site(backends=1, sessions=1)
    for session in "abc":
        site.ask(session)
    site.do(Aborted("c", "b.1"))
    site.do(Released("b"))
    assert dispatched(site.do(Released("a"))) == ["c.1"]


@given(st.lists(st.tuples(st.sampled_from(["ask", "end"]), st.integers(0, 9)), max_size=60))
def test_no_more_are_open_than_allowed_and_none_waits_beside_room(
    steps: list[tuple[str, int]],
) -> None:
    site, begun = Site(), set[str]()
    for number, (what, session) in enumerate(steps):
        if what == "ask":
            begun.update(site.ask(f"s{session}", number))
        else:
            begun.update(dispatched(site.do(Released(f"s{session}"))))
        opened = sum(len(each.sessions) for each in site.placement.backends.values())
        assert opened <= 4
        new = {each.session for each in map(site.placement.requests.get, site.placement.unplaced)}
        assert opened == 4 or not new
