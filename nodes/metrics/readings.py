"""Samples out of a broker's status: for each metric, label values and a number.

Job: small functions that make readers for the catalogue.
Does not know: names of metrics, or Prometheus.
Invariants: pure; what a status does not hold yields no sample, never a 0.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram's value: counts a bucket each, not added up, and the sum in seconds."""

    counts: tuple[int, ...]
    sum_s: float


Sample = tuple[Labels, float | Buckets]
Read = Callable[[Row], Iterator[Sample]]


def one(*path: str) -> Read:
    """Return a reader of one number in a status, without labels."""

    def read(status: Row) -> Iterator[Sample]:
        value: Any = status
        for name in path:
            value = value.get(name) if value.__class__ is dict else None
        if value is not None:
            yield (), float(value)

    return read


def each_bound(place: int) -> Read:
    """Return a reader of what is held (0) or allowed (1) of each bound."""

    def read(status: Row) -> Iterator[Sample]:
        for name, pair in status["bounds"].items():
            yield (name,), float(pair[place])

    return read


def counts(section: str, *names: str, prefix: str = "") -> Read:
    """Return a reader of counters of a section, labelled by name, 0 where nothing was counted."""

    def read(status: Row) -> Iterator[Sample]:
        for name in names:
            yield (name,), float(status[section].get(prefix + name, 0))

    return read


def rows(section: str, labels: tuple[str, ...], figure: str) -> Read:
    """Return a reader of one figure of each row of a section."""

    def read(status: Row) -> Iterator[Sample]:
        for row in status[section]:
            if row.get(figure) is not None:
                yield tuple(str(row[label]) for label in labels), _value(row[figure])

    return read


def states(section: str, label: str, names: tuple[str, ...]) -> Read:
    """Return a reader of several figures of each row, the last label naming which."""

    def read(status: Row) -> Iterator[Sample]:
        for row in status[section]:
            for name in names:
                yield (str(row[label]), name), float(row[name])

    return read


def histogram(name: str) -> Read:
    """Return a reader of a histogram of the broker."""

    def read(status: Row) -> Iterator[Sample]:
        yield (), _value(status[name])

    return read


def node(role: str, figure: str) -> Read:
    """Return a reader of one figure of each node of a role, labelled by host."""

    def read(status: Row) -> Iterator[Sample]:
        for found in status["nodes"]:
            if found["role"] == role and figure in found["figures"]:
                yield (found["host"],), float(found["figures"][figure])

    return read


def node_states(role: str, names: tuple[str, ...], suffix: str = "") -> Read:
    """Return a reader of several figures of each node of a role, by host and name."""

    def read(status: Row) -> Iterator[Sample]:
        for found in status["nodes"]:
            for name in names if found["role"] == role else ():
                if name + suffix in found["figures"]:
                    yield (found["host"], name), float(found["figures"][name + suffix])

    return read


def heard(status: Row) -> Iterator[Sample]:
    """Yield how long ago each node was heard, by node, role and host."""
    for worker in status["workers"]:
        yield (worker["node"], "worker", worker["host"]), float(worker["heard_s"])
    for found in status["nodes"]:
        yield (found["node"], found["role"], found["host"]), float(found["heard_s"])


def loop_lags(status: Row) -> Iterator[Sample]:
    """Yield how late each node's event loop is, by node, role and host."""
    for worker in status["workers"]:
        lag_s = max(worker["lag_s"], worker["loop_s"])
        yield (worker["node"], "worker", worker["host"]), float(lag_s)
    for found in status["nodes"]:
        if "loop_lag_s" in found["figures"]:
            labels = (found["node"], found["role"], found["host"])
            yield labels, float(found["figures"]["loop_lag_s"])


def part(figure: str) -> Read:
    """Return a reader of one figure of each inference backend."""

    def read(status: Row) -> Iterator[Sample]:
        for found in _parts(status):
            if figure in found["figures"]:
                yield (found["name"],), float(found["figures"][figure])

    return read


def opened(status: Row) -> Iterator[Sample]:
    """Yield whether each backend is open for sessions."""
    for found in _parts(status):
        yield (found["name"],), float(found["state"] == "open")


def _parts(status: Row) -> Iterator[Row]:
    for found in status["nodes"]:
        if found["role"] == "router":
            yield from found["parts"]


def _value(value: Any) -> float | Buckets:
    if value.__class__ is dict:
        return Buckets(tuple(value["counts"]), value["sum_s"])
    return float(value)
