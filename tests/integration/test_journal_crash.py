"""A process that writes a journal is killed at any moment; what it reported durable is kept.

Run as a script, this file is that process: it makes an endless, predictable stream of changes and
prints every position that becomes durable.
"""

import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.journal import Durability, Journal, Location

SEGMENT = 1024 * 1024
BODY = 20_000


def body_of(position: int) -> bytes:
    seed = hashlib.blake2b(str(position).encode(), digest_size=50).digest()
    return seed * (BODY // 50)


def expected(changes: int) -> dict[int, tuple[int, bool]]:
    """Return the entries (order, has a body) by position, after that many changes."""
    entries: dict[int, tuple[int, bool]] = {}
    for position in range(1, changes + 1):
        step, order = position % 4, position // 4
        if step == 1:
            entries[position] = (order, True)
        elif step == 2:
            entries[position] = (order, False)
        elif step == 3 and position > 100:
            entries[position - 80 - 2] = (order - 20, False)
        elif step == 0 and position > 200:
            entries = {at: entry for at, entry in entries.items() if entry[0] != order - 40}
    return entries


def stream(directory: Path, durability: Durability) -> None:
    """Make changes for ever, at most 200 ahead of what is durable."""
    woken = threading.Event()
    journal = Journal(
        directory, durability, segment_bytes=SEGMENT, ballast_bytes=4096, wake=woken.set
    )
    locations: dict[int, Location] = {}
    reported = position = 0
    while True:
        position += 1
        step, order = position % 4, position // 4
        if step == 1:
            body = body_of(position)
            _, locations[order] = journal.append(order, "body", b"h", [body[:100], body[100:]])
        elif step == 2:
            journal.append(order, "plain", b"%d" % position)
        elif step == 3 and position > 100:
            journal.release(locations.pop(order - 20))
        elif step == 0 and position > 200:
            journal.forget([order - 40])
        else:
            journal.put("position", b"%d" % position)
        while position - journal.durable > 200:
            woken.wait(1)
            woken.clear()
        if journal.durable > reported:
            reported = journal.durable
            print(reported, flush=True)  # noqa: T201 - the parent reads it


def killed_at(directory: Path, durability: Durability, position: int) -> int:
    """Return the last position that a process reported before SIGKILL met it."""
    command = [sys.executable, __file__, str(directory), durability]
    reported = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            reported = int(line)
            if reported >= position:
                process.kill()
                break
        rest = [int(line) for line in process.stdout if line.endswith("\n")]
    assert process.returncode == -9
    return max([reported, *rest])


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("position", [1, 500, 3000])
def test_what_was_reported_durable_survives_sigkill(
    tmp_path: Path, durability: Durability, position: int
) -> None:
    reported = killed_at(tmp_path, durability, position)
    journal = Journal(tmp_path, durability, segment_bytes=SEGMENT, wake=lambda: None)
    try:
        assert journal.durable >= reported
        entries = list(journal.entries())
        found = {entry.position: (entry.order, entry.location is not None) for entry in entries}
        assert found == expected(journal.durable)
        for entry in entries:
            if entry.location is not None:
                assert journal.read_body(entry.location) == body_of(entry.position)
        files = list((tmp_path / "bodies").iterdir())
        assert sum(path.stat().st_size for path in files) < 8 * SEGMENT
    finally:
        journal.close(20)


if __name__ == "__main__":
    stream(Path(sys.argv[1]), "power" if sys.argv[2] == "power" else "process")
