"""The routing bench's sessions, references and simulated fleet."""

from collections import Counter
from itertools import islice

import pytest

from bench.measure import percentile
from bench.routing_references import ConsistentHashing
from bench.sessions import Length, Shape, sessions
from bench.simulated_fleet import Figures, Fleet, Run
from nodes.inference.policies import Policy, named

SMALL = Shape(
    group_size=4,
    system_tokens=200,
    task=Length(50, 200),
    added=Length(60, 300),
    answer=Length(20, 60),
    turns_scale=0.3,
    context_tokens=4000,
)
FLEET = Fleet(backends=2, cache_tokens=8192)


def run(policy: str, load: int, bound: int = 0) -> Figures:
    made: Policy = named(policy)
    return Run(policy, made, FLEET, sessions(SMALL, 3), load, bound).figures(10.0, 30.0)


def test_sessions_have_the_recorded_number_of_turns() -> None:
    turns = [len(each.turns) for each in islice(sessions(Shape(context_tokens=10**9), 1), 4000)]
    assert percentile(turns, 50) == pytest.approx(29, abs=2)
    assert percentile(turns, 90) == pytest.approx(56, abs=2)
    assert percentile(turns, 99) == pytest.approx(85, abs=3)
    assert max(turns) <= 99


def test_a_group_shares_its_task_and_a_seed_its_sessions() -> None:
    first, again = (list(islice(sessions(SMALL, 5), 40)) for _ in range(2))
    assert first == again
    assert first != list(islice(sessions(SMALL, 6), 40))
    assert set(Counter(each.group for each in first).values()) == {4}
    assert len({(each.group, each.task_tokens) for each in first}) == 10


def test_no_session_is_longer_than_its_context() -> None:
    for each in islice(sessions(Shape(context_tokens=9000), 2), 200):
        total = sum(turn.added_tokens + turn.answer_tokens for turn in each.turns)
        assert each.system_tokens + each.task_tokens + total <= 9000


def test_hashing_keeps_a_session_where_it_is_and_moves_few_when_a_backend_leaves() -> None:
    policy = ConsistentHashing()
    for backend in "abcd":
        policy.join(backend, 8)

    def places() -> dict[str, str | None]:
        found = {}
        for number in range(400):
            policy.session = str(number)
            found[policy.session] = policy.choose()
        return found

    before = places()
    assert places() == before
    assert min(Counter(before.values()).values()) > 50
    policy.leave("d")
    after = places()
    assert all(after[name] == place for name, place in before.items() if place != "d")


def test_a_simulated_run_repeats_itself() -> None:
    assert run("sticky-least-loaded", 8) == run("sticky-least-loaded", 8)


def test_sessions_that_stay_find_their_prefix_and_those_that_move_do_not() -> None:
    sticky, moving = run("sticky-least-loaded", 12), run("round-robin", 12)
    assert sticky.hit_rate > 0.9
    assert moving.hit_rate < sticky.hit_rate - 0.1
    assert sticky.rollouts_per_s > moving.rollouts_per_s


def test_too_many_sessions_lose_their_prefixes_unless_they_are_bounded() -> None:
    free, bounded = run("sticky-least-loaded", 48), run("sticky-least-loaded", 48, bound=6)
    assert free.hit_rate < 0.7
    assert bounded.hit_rate > 0.9
