"""What a process measures of itself: how long things took, and how long its loop heard nobody.

Job: histograms with fixed buckets, so that two of them subtract and add up, and a loop's worst lag.
Does not know: what is measured. Time is an argument, in seconds.
Invariants: recording costs under a microsecond and no memory; counts only grow.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

BOUNDS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
"""Upper ends of the buckets; one more bucket holds what took longer."""
WINDOW_S = 10.0


class Histogram:
    """How often something took how long."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Record one duration."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def report(self) -> dict[str, Any]:
        """Return the counts, a bucket each and not added up, and the sum in seconds."""
        return {"counts": list(self.counts), "sum_s": self.sum_s}


def quantile(counts: Sequence[float], share: float) -> float | None:
    """Return the upper end of the bucket that holds a share of what was recorded, in seconds.

    None if nothing was recorded; infinity if it is in the last bucket.
    """
    total = sum(counts)
    if not total:
        return None
    passed = 0.0
    for count, bound in zip(counts, (*BOUNDS_S, float("inf")), strict=True):
        passed += count
        if passed >= share * total:
            return bound
    return float("inf")


class LoopLag:
    """The longest time that a loop did not listen, over the last one to two windows."""

    def __init__(self) -> None:
        self._worst_s = self._before_s = 0.0
        self._until = 0.0

    def took(self, seconds: float, now: float) -> None:
        """Record one turn of the loop."""
        if now >= self._until:
            self._before_s, self._worst_s = self._worst_s, 0.0
            self._until = now + WINDOW_S
        self._worst_s = max(self._worst_s, seconds)

    @property
    def worst_s(self) -> float:
        """The longest turn of late."""
        return max(self._worst_s, self._before_s)
