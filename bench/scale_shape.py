"""What bench.scale asks of every candidate, and what it counts: loads, durations, a window.

Job: durations of recorded shape by a rollout's number, what a candidate must do (Load) and has done
(Point), and the window in which it counts. Does not know: rollmq, Ray, sockets or processes.
Invariants: a run lasts `mean_s` in the mean over any BLOCK rollouts in a row, exactly, so two
windows differ by what the candidate did and not by what it drew; a rollout counts only if it ended
inside the window.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import NormalDist, fmean

from bench.machine import Spent
from bench.measure import percentile
from bench.sampling_kind import LIMIT

SIGMA = 1.0  # of the durations' logarithm, as in bench.sampling
BLOCK = 128
INIT, EVAL = 0.05, 0.1  # how long these stages take, in means of a run


@dataclass(frozen=True, slots=True)
class Load:
    """What runs: each host has so many slots of each stage and its own processes for them."""

    hosts: int
    run_slots: int
    side_slots: int  # of init, and of eval
    mean_s: float  # of a run
    in_flight: int
    tokens: int = 8192

    @property
    def most_per_s(self) -> float:
        """Rollouts a second if no slot were ever idle."""
        return self.hosts * self.run_slots / self.mean_s


@dataclass(frozen=True, slots=True)
class Times:
    """When one rollout's stages began and ended, seconds by a clock that all processes share."""

    init_ended: float
    run_began: float
    run_ended: float
    eval_began: float


@dataclass(frozen=True, slots=True)
class Point:
    """What one candidate did with one load in one window.

    dispatch: from a stage's end, inside the window, to the next stage's begin; with fewer rollouts
    in flight than slots, a slot was free throughout.
    cores: processors kept busy by the candidate, its client included; `machine_cores` by all.
    """

    rollouts_per_s: float
    dispatch_p50_ms: float
    dispatch_p99_ms: float
    running: float  # in their run stage, the mean over the window: rate times duration
    busy: float  # share of all run slots that was in use
    cores: float
    machine_cores: float
    memory_bytes: int  # of all its processes, shared pages in equal parts


def run_s(number: int, mean_s: float) -> float:
    """Return how long a rollout runs, by its number: log-normal, cut at LIMIT medians."""
    block, place = divmod(number, BLOCK)
    return mean_s * _shares()[_order(block)[place]]


@cache
def _shares() -> tuple[float, ...]:
    quantiles = [NormalDist(0.0, SIGMA).inv_cdf((i + 0.5) / BLOCK) for i in range(BLOCK)]
    drawn = [min(math.exp(value), LIMIT) for value in quantiles]
    return tuple(value / fmean(drawn) for value in drawn)


@lru_cache(256)
def _order(block: int) -> Sequence[int]:
    return random.Random(block).sample(range(BLOCK), BLOCK)


def dispatch_ms(times: Iterable[Times], since: float) -> list[float]:
    """Return how long each begin of a run and of an evaluation came after what it waited for.

    Only waits that began `since` then count: the longest runs that end in a window began when
    everything was submitted at once.
    """
    waits = [
        wait
        for each in times
        for wait in ((each.init_ended, each.run_began), (each.run_ended, each.eval_began))
    ]
    return [(began - ready) * 1e3 for ready, began in waits if ready >= since]


class Window:
    """Count what ends within `seconds` after a warm-up; the clock starts at construction.

    `spent` says what all processes of the candidate have used so far.
    """

    def __init__(
        self,
        load: Load,
        seconds: float,
        warmup_s: float,
        spent: Callable[[], Spent],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._clock = clock
        self._spent = spent
        self._opens = clock() + warmup_s
        self._seconds = seconds
        self._before: Spent | None = None
        self._after: Spent | None = None
        self._times: list[Times] = []

    def ended(self, times: Times) -> bool:
        """Take a rollout that has just ended; return whether the window is still open."""
        now = self._clock()
        if now < self._opens:
            return True
        if self._before is None:
            self._opens, self._before = now, self._spent()
            return True
        if now < self._opens + self._seconds:
            self._times.append(times)
            return True
        if self._after is None:
            self._after = self._spent()
        return False

    def point(self, memory_bytes: int) -> Point:
        """Return the window's figures.

        Raises:
            ValueError: nothing ended in the window, or it is still open.

        """
        if self._before is None or self._after is None:
            raise ValueError("the window is still open")
        waits = dispatch_ms(self._times, self._opens)
        rate = len(self._times) / self._seconds
        took_s = self._after.at - self._before.at
        return Point(
            rollouts_per_s=rate,
            dispatch_p50_ms=percentile(waits, 50),
            dispatch_p99_ms=percentile(waits, 99),
            running=rate * self._load.mean_s,
            busy=rate / self._load.most_per_s,
            cores=(self._after.own_s - self._before.own_s) / took_s,
            machine_cores=(self._after.machine_s - self._before.machine_s) / took_s,
            memory_bytes=memory_bytes,
        )
