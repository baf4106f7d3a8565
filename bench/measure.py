"""Clocks, medians, tables and plots that every bench shares.

This module knows nothing of rollmq or of any reference. Invariants: warm-up never counts, a
latency counts only with the rollout that it belongs to, and a median is one run that happened.
"""

import operator
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import orjson

RESULTS = Path(__file__).parent / "results"
WARMUP_S = 2.0  # Ray needs more than its first 300 rollouts to reach its pace
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """What one candidate did in one measured window."""

    name: str
    rollouts: int
    seconds: float
    rollouts_per_s: float
    p50_ms: float
    p99_ms: float


def percentile(values: Iterable[float], q: float) -> float:
    """Return the q-th percentile (0 to 100) of values, linear between neighbours.

    Raises:
        ValueError: no values, or q outside 0 to 100.

    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("a percentile of no values does not exist")
    if not 0 <= q <= 100:
        raise ValueError(f"q must lie between 0 and 100, got {q}")
    rank = (len(ordered) - 1) * q / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


class Meter:
    """Count the rollouts that finish in a window of `seconds` after a warm-up.

    The clock starts at construction: make one when the candidate is ready for its first rollout.
    """

    def __init__(
        self,
        name: str,
        seconds: float,
        *,
        warmup_s: float = WARMUP_S,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.name = name
        self.seconds = seconds
        self.clock = clock
        self.opens = clock() + warmup_s
        self.closes = self.opens + seconds
        self._latencies_s: list[float] = []

    def finished(self, started: float) -> bool:
        """Record a rollout that was submitted at `started`; return whether to submit another."""
        now = self.clock()
        if now >= self.closes:
            return False
        if now >= self.opens:
            self._latencies_s.append(now - started)
        return True

    def result(self) -> ReferenceResult:
        """Return the window's figures.

        Raises:
            ValueError: no rollout finished inside the window.

        """
        if not self._latencies_s:
            raise ValueError(f"{self.name}: no rollout finished in {self.seconds} s")
        count = len(self._latencies_s)
        return ReferenceResult(
            name=self.name,
            rollouts=count,
            seconds=self.seconds,
            rollouts_per_s=count / self.seconds,
            p50_ms=percentile(self._latencies_s, 50) * 1e3,
            p99_ms=percentile(self._latencies_s, 99) * 1e3,
        )


def interleave(
    candidates: Mapping[str, Callable[[float], R]],
    seconds: float,
    rounds: int,
    *,
    key: Callable[[R], float] = operator.attrgetter("rollouts_per_s"),
    report: Callable[[str, R], None] = lambda _name, _result: None,
) -> dict[str, R]:
    """Run the candidates in alternation, every second round backwards; return each one's median.

    The median is the whole result of the run in the middle by `key` (the lower one of two).
    `report` hears of every run, for progress and spread.

    Raises:
        ValueError: `rounds` is below 1.

    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    results: dict[str, list[R]] = {name: [] for name in candidates}
    for number in range(rounds):
        for name in list(candidates)[:: -1 if number % 2 else 1]:
            result = candidates[name](seconds)
            results[name].append(result)
            report(name, result)
    return {name: _middle(runs, key) for name, runs in results.items()}


def _middle(runs: Sequence[R], key: Callable[[R], float]) -> R:
    wanted = statistics.median_low([key(run) for run in runs])
    return next(run for run in runs if key(run) == wanted)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a plain table: first column flush left, the others flush right, floats readable."""
    lines = [list(headings), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def result_table(results: Iterable[ReferenceResult]) -> str:
    """Return the table of several candidates' figures."""
    return table(
        ["candidate", "rollouts/s", "p50 ms", "p99 ms", "rollouts", "window s"],
        [[r.name, r.rollouts_per_s, r.p50_ms, r.p99_ms, r.rollouts, r.seconds] for r in results],
    )


def json_line(values: Mapping[str, Any]) -> str:
    """Return one line of JSON for machines; dataclasses and numpy scalars are taken as they are.

    Raises:
        TypeError: a value has no JSON form.

    """
    return orjson.dumps(dict(values), option=orjson.OPT_SERIALIZE_NUMPY).decode()


def write_results(bench: str, values: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write values to `<folder>/<bench>.json` and return that path.

    Raises:
        OSError: the file cannot be written.
        TypeError: a value has no JSON form.

    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{bench}.json"
    path.write_text(json_line(values) + "\n", encoding="utf-8")
    return path
