"""Processor time and memory of this process and of every process below it, from /proc.

Nothing is looked for by name: a process counts because its parent does.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS_S = os.sysconf("SC_CLK_TCK")
BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal


@dataclass(frozen=True, slots=True)
class Spent:
    """Processor seconds up to a time of the monotonic clock."""

    at: float
    own_s: float  # by this process and all below it
    machine_s: float  # by everything on this machine


def spent() -> Spent:
    """Return what was used until now."""
    return Spent(time.monotonic(), sum(map(_cpu_s, tree(os.getpid()))), _machine_s())


def memory_bytes(pids: Iterator[int] | list[int]) -> int:
    """Return the memory of processes: what each has alone, and its part of what is shared."""
    return sum(map(_pss_bytes, pids))


def tree(pid: int) -> Iterator[int]:
    """Yield a process and everything below it that is there now."""
    yield pid
    for child in children(pid):
        yield from tree(child)


def children(pid: int) -> list[int]:
    """Return the processes that any thread of a process started and that have not ended."""
    found: list[int] = []
    try:
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, path.read_text(encoding="ascii").split())
    except OSError:  # it ends just now
        pass
    return found


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_S


def _machine_s() -> float:
    first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    return sum(int(first[place]) for place in BUSY) / TICKS_S


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
