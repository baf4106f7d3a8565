"""The pure parts of the benches: percentiles, the measured window, alternation and tables."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bench.measure import Meter, ReferenceResult, interleave, json_line, percentile, table


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def result(rate: float) -> ReferenceResult:
    return ReferenceResult("fake", int(rate), 1.0, rate, 1.0, 2.0)


@pytest.mark.parametrize(
    ("q", "expected"), [(0, 1.0), (50, 2.5), (100, 4.0), (99, 3.97), (25, 1.75)]
)
def test_a_percentile_is_linear_between_neighbours(q: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], q) == pytest.approx(expected)


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 99) == 7.0


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_percentile_outside_0_to_100_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile([1.0], 101)


def test_a_meter_counts_only_what_finishes_in_its_window() -> None:
    clock = Clock()
    meter = Meter("fake", 10.0, warmup_s=2.0, clock=clock)
    wanted = []
    for clock.now in (1.0, 2.0, 7.0, 11.9, 12.0):
        wanted.append(meter.finished(clock.now - 0.5))
    found = meter.result()
    assert wanted == [True, True, True, True, False]
    assert (found.rollouts, found.rollouts_per_s, found.p50_ms) == (3, 0.3, pytest.approx(500))


def test_a_meter_without_rollouts_has_no_result() -> None:
    with pytest.raises(ValueError, match="fake: no rollout"):
        Meter("fake", 1.0, clock=Clock()).result()


def test_candidates_alternate_and_every_second_round_runs_backwards() -> None:
    ran: list[tuple[str, float]] = []

    def candidate(name: str) -> Callable[[float], ReferenceResult]:
        def run(seconds: float) -> ReferenceResult:
            ran.append((name, seconds))
            return result(1.0)

        return run

    interleave({name: candidate(name) for name in "abc"}, seconds=3.0, rounds=3)
    assert "".join(name for name, _ in ran) == "abccbaabc"
    assert {seconds for _, seconds in ran} == {3.0}


@pytest.mark.parametrize(
    ("rates", "middle"), [([5.0], 5.0), ([9.0, 1.0, 4.0], 4.0), ([2.0, 8.0], 2.0)]
)
def test_the_median_is_a_run_that_happened(rates: list[float], middle: float) -> None:
    runs = iter([result(rate) for rate in rates])
    found = interleave({"fake": lambda _seconds: next(runs)}, 1.0, len(rates))
    assert found["fake"].rollouts_per_s == middle


def test_every_run_is_reported() -> None:
    heard: list[tuple[str, ReferenceResult]] = []
    interleave(
        {"fake": lambda _seconds: result(3.0)},
        1.0,
        2,
        report=lambda name, found: heard.append((name, found)),
    )
    assert heard == [("fake", result(3.0))] * 2


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        interleave({}, 1.0, 0)


def test_a_table_is_aligned() -> None:
    lines = table(["name", "rate"], [["a", 12345.6], ["longer", 1.5]]).splitlines()
    assert lines == ["name      rate", "------  ------", "a       12,346", "longer    1.50"]


def test_json_is_one_line_and_takes_records() -> None:
    line = json_line({"raw_zmq": result(2.0)})
    assert "\n" not in line
    assert json.loads(line)["raw_zmq"]["rollouts_per_s"] == 2.0
