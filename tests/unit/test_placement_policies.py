"""Which backend a new session goes to."""

from collections import Counter
from itertools import pairwise

import pytest

from nodes.inference.events import (
    Released,
)
from nodes.inference.policies import LeastLoaded, named

from ..placement_kit import Bench


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
