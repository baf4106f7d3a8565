"""Every request ends once and is in one place until then, whatever happens in what order."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.inference.events import (
    Aborted,
    Answered,
    Asked,
    BackendAlive,
    BackendGone,
    BackendHeld,
    BackendOpened,
    BackendShut,
    BackendUp,
    ClientGone,
    Deliver,
    Drop,
    Event,
    Fail,
    Refused,
    Released,
    Stopped,
    Tick,
)
from nodes.inference.placement import TRIES, Placement

from ..placement_kit import Bench

POLICIES = ("sticky-least-loaded", "least-loaded", "round-robin", "random")
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
