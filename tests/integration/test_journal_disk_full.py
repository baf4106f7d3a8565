"""A journal on a disk of 24 MiB that runs full for real.

Each scenario runs in a process with mounts of its own, so that no mount outlives it; run as a
script, this file is that process.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.journal import Journal, Location

MIB = 1024 * 1024
DEADLINE_S = 30


class Disk:
    """A journal on the small disk, and what was appended to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.woken = threading.Event()
        self.locations: dict[int, Location | None] = {}
        self.journal = self.open()

    def open(self) -> Journal:
        return Journal(
            self.path / "journal",
            "power",
            segment_bytes=4 * MIB,
            ballast_bytes=2 * MIB,
            wake=self.woken.set,
        )

    def until(self, is_reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not is_reached():
            self.woken.wait(max(0, deadline - time.monotonic()))
            self.woken.clear()
            assert time.monotonic() < deadline, self.journal.statistics()
            assert self.journal.failure is None, self.journal.failure

    def append(self, order: int) -> int:
        position, self.locations[order] = self.journal.append(order, "k", b"h", [body(order)])
        return position

    def fill(self) -> int:
        """Append bodies until the disk is full, and five more; return the last position."""
        order = 0
        while not self.journal.full:
            order += 1
            position = self.append(order)
            self.until(
                lambda position=position: self.journal.durable >= position or self.journal.full
            )
        return max(self.append(more) for more in range(order + 1, order + 6))

    def expect_all_but(self, gone: set[int]) -> None:
        """Everything appended is there after reopening, and can be read."""
        self.journal.close(DEADLINE_S)
        self.journal = self.open()
        found = {entry.order: entry.location for entry in self.journal.entries()}
        assert found == {at: place for at, place in self.locations.items() if at not in gone}
        for order, location in found.items():
            assert location is not None
            assert self.journal.read_body(location) == body(order)
        self.journal.close(DEADLINE_S)


def body(order: int) -> bytes:
    return bytes([order]) * (MIB - order)


def space_that_returns_ends_it(disk: Disk) -> None:
    filler = disk.path / "filler"
    filler.write_bytes(b"x" * (8 * MIB))
    last = disk.fill()
    assert disk.journal.durable < last
    assert disk.journal.statistics()["full"] == 1
    filler.unlink()
    disk.until(lambda: disk.journal.durable == last and not disk.journal.full)
    assert (disk.path / "journal" / "ballast").stat().st_size == 2 * MIB
    disk.expect_all_but(set())


def forgetting_frees_the_space_that_is_missing(disk: Disk) -> None:
    disk.fill()
    gone = set(range(1, 13))
    for order in gone:
        last = disk.journal.forget([order])
    disk.until(lambda: disk.journal.durable == last and not disk.journal.full)
    disk.expect_all_but(gone)


def rows_alone_fill_the_disk_and_are_kept(disk: Disk) -> None:
    filler = disk.path / "filler"
    filler.write_bytes(b"x" * (14 * MIB))
    order = 0
    while not disk.journal.full:
        order += 1
        position, disk.locations[order] = disk.journal.append(order, "k", b"h" * 100_000)
        disk.until(lambda at=position: disk.journal.durable >= at or disk.journal.full)
    disk.journal.put("kept", b"yes")
    filler.unlink()
    disk.until(lambda: not disk.journal.full and disk.journal.durable == order + 1)
    assert disk.journal.values() == {"kept": b"yes"}
    assert [entry.order for entry in disk.journal.entries()] == list(disk.locations)
    disk.journal.close(DEADLINE_S)


def a_broker_starts_on_a_full_disk_and_forgets_its_way_out(disk: Disk) -> None:
    for order in range(1, 13):
        last = disk.append(order)
    disk.until(lambda: disk.journal.durable == last)
    disk.journal.close(DEADLINE_S)
    occupy_the_rest(disk.path / "filler")
    disk.journal = disk.open()
    assert len(list(disk.journal.entries())) == 12
    disk.append(13)
    disk.until(lambda: disk.journal.full)
    gone = set(range(1, 9))
    disk.journal.forget(sorted(gone))
    disk.until(lambda: not disk.journal.full)
    disk.expect_all_but(gone)


def occupy_the_rest(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        space_that_returns_ends_it,
        forgetting_frees_the_space_that_is_missing,
        rows_alone_fill_the_disk_and_are_kept,
        a_broker_starts_on_a_full_disk_and_forgets_its_way_out,
    )
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_full_disk_loses_nothing(tmp_path: Path, scenario: str) -> None:
    own_mounts = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "-r", "--mount"]
    done = subprocess.run(
        [*own_mounts, sys.executable, __file__, scenario, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{own_mounts}: {done.stderr}"


if __name__ == "__main__":
    small = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", sys.argv[2]]
    subprocess.run(small, check=True)
    SCENARIOS[sys.argv[1]](Disk(Path(sys.argv[2])))
