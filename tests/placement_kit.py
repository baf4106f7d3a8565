"""A placement with a clock that tests move, checked after every event."""

from collections import Counter
from typing import TypeVar

from nodes.inference.events import (
    Asked,
    BackendOpened,
    BackendUp,
    Dispatch,
    Event,
    Instruction,
)
from nodes.inference.fleet import Rules
from nodes.inference.placement import Placement
from nodes.inference.policies import named

Kind = TypeVar("Kind")


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
