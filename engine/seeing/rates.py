"""Two looks at the same broker, as changes and rates.

Job: subtract counters, and say what changed between two statuses.
Does not know: sockets or clocks; when a status was asked for is a part of the look.
Invariants: a broker that was replaced between the looks has no rates, as its counters begin anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..figures import quantile

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Look:
    """A status, and when it came, in seconds of any clock."""

    status: dict[str, Any]
    at: float


@dataclass(frozen=True, slots=True)
class Span:
    """The last look, and the one before it if that was at the same broker."""

    last: Look
    before: Look | None = None

    @classmethod
    def between(cls, before: Look | None, last: Look) -> "Span":
        """Return the span of two looks."""
        same = before is not None and before.status["broker_id"] == last.status["broker_id"]
        return cls(last, before if same else None)

    @property
    def seconds(self) -> float:
        """How long the span is; 0 without a look before."""
        return self.last.at - self.before.at if self.before else 0.0

    @property
    def status(self) -> dict[str, Any]:
        """The last status."""
        return self.last.status

    def pairs(self, section: str, *key: str) -> Iterator[tuple[Row, Row | None]]:
        """Yield each row of a section with the same row before; `key` names it."""
        known = {}
        if self.before is not None:
            known = {tuple(row[k] for k in key): row for row in self.before.status[section]}
        for row in self.status[section]:
            yield row, known.get(tuple(row[k] for k in key))

    def change(self, section: str, name: str) -> float:
        """Return by how much a counter has grown; 0 without a look before."""
        if self.before is None:
            return 0.0
        last, before = self.status[section], self.before.status[section]
        return float(last.get(name, 0) - before.get(name, 0))

    def rate(self, row: Row, before: Row | None, name: str) -> float | None:
        """Return what a counter of a row gains each second; None without a look before."""
        if before is None or self.seconds <= 0:
            return None
        return float(row[name] - before[name]) / self.seconds


def of_late(histogram: Row, before: Row | None) -> list[int]:
    """Return the counts that a histogram has gained; all of them without one before."""
    counts: list[int] = histogram["counts"]
    if before is None:
        return counts
    return [now - then for now, then in zip(counts, before["counts"], strict=True)]


def typical_s(histogram: Row, share: float) -> float | None:
    """Return the upper end of the bucket that holds a share, in seconds; None without any."""
    return quantile(histogram["counts"], share)
