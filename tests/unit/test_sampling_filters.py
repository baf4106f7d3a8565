"""Which groups the filters keep, and how a topology adds its own."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from engine.errors import FilterError
from engine.sampling import FILTERS, Member, load_filters

from ..sampling_kit import member


@pytest.mark.parametrize(
    ("rewards", "kept"), [([1, 0], True), ([1, 1], False), ([0.5, 0.5 + 1e-9], False), ([1], False)]
)
def test_dapo_keeps_groups_whose_rewards_differ(rewards: list[float], kept: bool) -> None:
    assert FILTERS["dapo"].judge([member("m", reward) for reward in rewards]) is kept


@pytest.mark.parametrize(
    ("rewards", "low", "high", "kept"),
    [
        ([1, 0], 0.5, 0.5, True),
        ([1, 1], 0.1, 0.9, False),
        ([0, 0], 0.0, 0.9, True),
        ([], 0, 1, False),
    ],
)
def test_reward_bounds_include_both_ends(
    rewards: list[float], low: float, high: float, kept: bool
) -> None:
    bounds = replace(FILTERS["reward-bounds"], arguments={"low": low, "high": high})
    assert bounds.judge([member("m", reward) for reward in rewards]) is kept


@pytest.mark.parametrize(
    ("rewards", "missing", "hopeless"),
    [
        ([1], 1, False),
        ([1, 1, 1], 1, True),
        ([0, 0, 0], 1, True),
        ([], 4, False),
        ([1, 1], 2, False),
    ],
)
def test_a_mean_that_no_reward_can_bring_within_bounds_is_hopeless(
    rewards: list[float], missing: int, hopeless: bool
) -> None:
    bounds = replace(FILTERS["reward-bounds"], arguments={"low": 0.4, "high": 0.6})
    found = bounds.is_hopeless([member("m", reward) for reward in rewards], missing)
    assert found is hopeless


def test_a_filter_without_a_say_never_calls_a_group_hopeless() -> None:
    assert not FILTERS["dapo"].is_hopeless([member("a"), member("b")], 1)


def longest(members: Iterable[Member], seconds: float) -> bool:
    return max(each.seconds for each in members) > seconds


def test_a_topology_may_add_filters_of_its_own() -> None:
    found = load_filters({"long": f"{__name__}:longest"})
    assert set(found) == {*FILTERS, "long"}
    assert replace(found["long"], arguments={"seconds": 1.0}).judge([member("m")])
    with pytest.raises(FilterError, match="filter 'long' raised ValueError"):
        replace(found["long"], arguments={"seconds": 1.0}).judge([])


@pytest.mark.parametrize(
    "place", ["nowhere:x", f"{__name__}:nothing", f"{__name__}", "os:sep", ":"]
)
def test_a_filter_that_cannot_be_loaded_is_named(place: str) -> None:
    with pytest.raises(FilterError, match="filter 'mine'"):
        load_filters({"mine": place})
