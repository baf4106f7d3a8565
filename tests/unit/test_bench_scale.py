"""The pure parts of bench.scale: durations, the window, what its figures are made of."""

from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

import pytest

from bench.machine import Spent
from bench.scale import HOSTS, PACES_S, full_host, values
from bench.scale_shape import BLOCK, Load, Point, Times, Window, dispatch_ms, run_s

LOAD = Load(hosts=2, run_slots=4, side_slots=1, mean_s=2.0, in_flight=16)
POINT = Point(10.0, 1.0, 5.0, 20.0, 0.5, 0.25, 1.5, 1_000)


@dataclass
class Clock:
    """Time that the test moves, and processors that it keeps busy."""

    now: float = 100.0
    own_s: float = 7.0

    def __call__(self) -> float:
        return self.now

    def spent(self) -> Spent:
        return Spent(self.now, self.own_s, 3 * self.own_s)


def times(began: float) -> Times:
    return Times(began - 0.010, began, began + 1.0, began + 1.030)


def test_every_block_of_runs_lasts_the_mean_exactly() -> None:
    for block in range(3):
        drawn = [run_s(number, 2.0) for number in range(block * BLOCK, (block + 1) * BLOCK)]
        assert fmean(drawn) == pytest.approx(2.0)


def test_blocks_differ_in_order_and_a_number_always_runs_as_long() -> None:
    one, other = ([run_s(block * BLOCK + n, 1.0) for n in range(BLOCK)] for block in (0, 1))
    assert one != other
    assert sorted(one) == sorted(other)
    assert one == [run_s(n, 1.0) for n in range(BLOCK)]


def test_the_slowest_tenth_takes_two_fifths_of_the_time() -> None:
    drawn = sorted(run_s(number, 1.0) for number in range(BLOCK))
    assert sum(drawn[-BLOCK // 10 :]) / sum(drawn) == pytest.approx(0.4, abs=0.03)


def test_each_begin_counts_from_the_end_of_the_stage_before() -> None:
    assert dispatch_ms([times(5.0)], 4.0) == pytest.approx([10.0, 30.0])


def test_a_wait_that_began_before_the_window_does_not_count() -> None:
    assert dispatch_ms([times(5.0)], 5.5) == pytest.approx([30.0])


def test_only_what_ends_inside_the_window_counts() -> None:
    clock = Clock()
    window = Window(LOAD, 10.0, 5.0, clock.spent, clock)
    for _ in range(3):
        assert window.ended(times(clock.now))
    clock.now += 6.0
    assert window.ended(times(clock.now))  # opens the window
    clock.own_s += 4.0
    for _ in range(8):
        clock.now += 1.0
        assert window.ended(times(clock.now))
    clock.now += 2.5
    assert not window.ended(times(clock.now))
    assert not window.ended(times(clock.now))
    point = window.point(5_000)
    assert (point.rollouts_per_s, point.running, point.memory_bytes) == (0.8, 1.6, 5_000)
    assert point.busy == pytest.approx(0.8 / 4.0)
    assert (point.cores, point.machine_cores) == pytest.approx((4.0 / 10.5, 12.0 / 10.5))


def test_a_window_that_is_still_open_has_no_figures() -> None:
    clock = Clock()
    window = Window(LOAD, 10.0, 0.0, clock.spent, clock)
    window.ended(times(clock.now))
    with pytest.raises(ValueError, match="still open"):
        window.point(0)


def test_efficiency_is_against_so_many_times_one_host() -> None:
    rates = dict(zip(HOSTS, (10.0, 20.0, 39.0, 76.0), strict=True))
    points = {str(count): replace(POINT, rollouts_per_s=rate) for count, rate in rates.items()}
    figures = values({"hosts": points})
    found = [figures[f"efficiency_{count}"] for count in HOSTS[1:]]
    assert found == pytest.approx([1.0, 0.975, 0.95])
    assert figures["rollouts_per_s_8"] == 76.0


def test_ratios_are_ours_over_theirs() -> None:
    last = f"{PACES_S[-1]:g} s"
    pace = {f"rollmq {last}": replace(POINT, rollouts_per_s=30.0), f"ray {last}": POINT}
    curve = {"plain": POINT, "curve": replace(POINT, rollouts_per_s=8.0)}
    figures = values({"pace": pace, "curve": curve})
    assert (figures["ratio_ray"], figures["curve_ratio"]) == (3.0, 0.8)
    assert figures["curve_cpu_ratio"] == pytest.approx(1.25)


def test_2000_at_once_are_named_by_candidate_and_hosts() -> None:
    names = ("rollmq", "rollmq on 8", "ray", "ray on 8")
    waits = dict(zip(names, (1.0, 2.0, 3.0, 4.0), strict=True))
    many = {name: replace(POINT, dispatch_p99_ms=p99) for name, p99 in waits.items()}
    figures = values({"many": many})
    suffixes = ("", "_on_8_hosts", "_ray", "_ray_on_8_hosts")
    assert [figures[f"dispatch_p99_ms{suffix}"] for suffix in suffixes] == list(waits.values())


def test_every_pace_keeps_more_in_flight_than_there_are_run_slots() -> None:
    assert all(slower > faster for slower, faster in pairwise(PACES_S))
    for count in HOSTS:
        load = full_host(count, 1.0)
        assert load.in_flight > load.hosts * (load.run_slots + load.side_slots)
        assert load.most_per_s == 32.0 * count
