"""How much memory and disk sandboxes take, measured from outside.

Job: find the processes of each sandbox by its process-id namespace, add up what they and its files
take, and say whom to end.
Does not know: who owns a sandbox, or when to look.
Invariants: nothing that a sandbox can choose makes a look endless: files of the shared directory
are counted up to a bound. Pages that processes share count once before anybody is ended for them.

Memory is that of programs (anonymous, and swapped out) and, whichever is more, files in the
sandbox's tmpfs or shared memory that is mapped: mapped files are both.
"""

import fcntl
import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .enter import start_time
from .records import Record

NS_GET_PARENT = 0xB702
IN_MEMORY = {"/work", "/tmp", "/dev/shm", "/var/tmp"}  # noqa: S108 - inside
MOST_FILES = 50_000  # of a shared directory; more are too many whatever their size
KIB = 1024


@dataclass(frozen=True, slots=True)
class Part:
    """One process; `anonymous` and `mapped` (of shared memory) in bytes."""

    pid: int
    started: int
    anonymous: int
    mapped: int


@dataclass(frozen=True, slots=True)
class Use:
    """What one sandbox takes: its processes but the first, and its files in memory, in bytes."""

    parts: tuple[Part, ...] = ()
    files_bytes: int = 0

    @property
    def memory_bytes(self) -> int:
        """All of it."""
        mapped = sum(part.mapped for part in self.parts)
        return sum(part.anonymous for part in self.parts) + max(mapped, self.files_bytes)


@dataclass(slots=True)
class _Namespaces:
    """Which sandbox a process-id namespace belongs to, itself or by one that it is below."""

    known: dict[int, str | None] = field(default_factory=dict)

    def sandbox(self, pid: int) -> str | None:
        path = f"/proc/{pid}/ns/pid"
        inode = os.stat(path).st_ino  # noqa: PTH116 - pathlib costs more than the call
        if inode not in self.known:
            handle = os.open(path, os.O_RDONLY)
            try:
                self.known[inode] = self._above(handle)
            finally:
                os.close(handle)
        return self.known[inode]

    def _above(self, handle: int) -> str | None:
        try:
            parent = fcntl.ioctl(handle, NS_GET_PARENT)
        except OSError:  # there is none that we may know of
            return None
        try:
            inode = os.fstat(parent).st_ino
            return self.known[inode] if inode in self.known else self._above(parent)
        finally:
            os.close(parent)


def measure(records: Iterable[Record]) -> dict[str, Use]:
    """Return what each sandbox takes, by name; those that are gone are left out."""
    namespaces, by_name = _Namespaces(), {}
    for record in records:
        with suppress(OSError):
            if record.pid and record.is_alive():
                inode = os.stat(f"/proc/{record.pid}/ns/pid").st_ino  # noqa: PTH116
                namespaces.known[inode] = record.name
                by_name[record.name] = record
    members = defaultdict(list)
    for name in os.listdir("/proc") if by_name else ():  # noqa: PTH208
        with suppress(OSError):
            if name.isdigit() and (sandbox := namespaces.sandbox(int(name))) is not None:
                members[sandbox].append(int(name))
    return {name: _use(record, members[name]) for name, record in by_name.items()}


def _use(record: Record, pids: list[int]) -> Use:
    found = [part for pid in pids if pid != record.pid and (part := _part(pid)) is not None]
    use = Use(tuple(found), _files(record.pid))
    if use.memory_bytes <= record.limits.total_bytes:
        return use
    return Use(tuple(_shared(part) for part in found), use.files_bytes)


def _part(pid: int) -> Part | None:
    """Return a process at most as large as it can be: pages that it shares count whole."""
    with suppress(OSError):
        started = start_time(pid)
        told = _fields(f"/proc/{pid}/status")
        anonymous = told.get("RssAnon", 0) + told.get("VmSwap", 0)
        if started:
            return Part(pid, started, anonymous, told.get("RssShmem", 0))
    return None


def _shared(part: Part) -> Part:
    """Return a process with its share of what it shares; as it was if it has ended."""
    with suppress(OSError):
        told = _fields(f"/proc/{part.pid}/smaps_rollup")
        anonymous = told.get("Pss_Anon", 0) + told.get("SwapPss", 0)
        return Part(part.pid, part.started, anonymous, told.get("Pss_Shmem", 0))
    return part


def _fields(path: str) -> dict[str, int]:
    """Return the sizes that a file of /proc tells, in bytes."""
    found = {}
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) * KIB
    return found


def _files(pid: int) -> int:
    """Return what lies in the tmpfs of a sandbox that programs may write."""
    total = 0
    with suppress(OSError):
        mounts = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8", errors="replace")
        places = {line.split()[4] for line in mounts.splitlines() if " - tmpfs " in line}
        for place in places & IN_MEMORY:
            about = os.statvfs(f"/proc/{pid}/root{place}")
            total += (about.f_blocks - about.f_bfree) * about.f_frsize
    return total


def to_end(use: Use, bound: int) -> list[Part]:
    """Return the largest processes, as many as have to end until the rest is within the bound."""
    chosen: list[Part] = []
    left = sorted(use.parts, key=lambda part: part.anonymous + part.mapped)
    while left and Use(tuple(left), use.files_bytes).memory_bytes > bound:
        chosen.append(left.pop())
    return chosen


def tree_bytes(directory: Path, most_files: int = MOST_FILES) -> int | None:
    """Return what a directory takes on disk, links not followed; None if it has too many files."""
    total, count, waiting = 0, 0, [os.fspath(directory)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                count += 1
                if count > most_files:
                    return None
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return total
