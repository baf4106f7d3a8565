"""The broker's durable state: entries owned by integer orders, their bodies, and a few values.

The broker's thread queues changes and goes on; one writer thread takes whatever is queued as soon
as it is idle, makes the bodies durable, commits the rows and calls `wake`. The broker answers only
what lies at or below `durable`. The journal knows no rollout, message or socket.

Invariants: changes become durable in the order of their positions, with one exception: while the
disk is full, a forget, and a release whose order has nothing queued, may go ahead of entries that
do not fit. `durable` never falls and never passes a change that is not committed. Nothing queued
is dropped but by a forget of its order. A segment is used again only after the commit that
removed the last row which needs it.

After a crash a body whose release was still queued is back; so is an entry whose forget was.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from isal.isal_zlib import crc32

from ..errors import JournalError
from ..figures import Histogram
from .segments import Ballast, Cursor, Location, Segments
from .store import (
    Append,
    Drop,
    Forget,
    Put,
    Release,
    Store,
    Stored,
    lock_directory,
    refuse_network_file_system,
)
from .writer import Disk, Durability, Pace, Writer

__all__ = ["Durability", "Journal", "Location", "NullJournal", "Stored"]

MIB = 1024 * 1024


class NullJournal:
    """The journal of durability `none`: everything is durable at once, nothing is kept.

    A body has no location; whoever appends it keeps it.
    """

    keeps = False  # so nobody needs to encode what is appended

    def __init__(self) -> None:
        self.durable = 0
        self.full = False
        self.failure: JournalError | None = None
        self.commits = Histogram()

    def append(
        self, order: int, kind: str, header: bytes, body: Sequence[Any] = ()
    ) -> tuple[int, Location | None]:
        """Return the next position and no location."""
        del order, kind, header, body
        return self._next(), None

    def put(self, key: str, value: bytes) -> int:
        """Return the next position."""
        del key, value
        return self._next()

    def drop(self, key: str) -> int:
        """Return the next position."""
        del key
        return self._next()

    def forget(self, orders: Sequence[int]) -> int:
        """Return the next position."""
        del orders
        return self._next()

    def release(self, location: Location) -> None:
        """Do nothing: no body has a location."""

    def read_body(self, location: Location) -> memoryview:
        """Refuse: no body has a location.

        Raises: JournalError.
        """
        raise JournalError(f"durability none keeps no bodies, asked for {location}")

    def entries(self) -> Iterator[Stored]:
        """Yield nothing."""
        return iter(())

    def values(self) -> dict[str, bytes]:
        """Return nothing."""
        return {}

    def statistics(self) -> dict[str, float]:
        """Return the one figure that there is."""
        return {"queued": 0.0, "full": 0.0}

    def close(self, deadline_s: float) -> None:
        """Do nothing."""

    def _next(self) -> int:
        self.durable += 1
        return self.durable


class Journal:
    """A journal in a directory of its own; every method is for the broker's thread.

    `wake` is called on the writer's thread after each commit, when `full` changes and when
    `failure` is set. Commits begin up to `commit_s` apart, the further the more there is to
    do, so that a busy broker's gather into batches.

    Raises: JournalError if the directory is in use, on a network file system, written by another
    version, or damaged.
    """

    keeps = True

    def __init__(
        self,
        directory: Path,
        durability: Durability,
        *,
        commit_rows: int = 256,
        commit_s: float = 0.005,
        segment_bytes: int = 64 * MIB,
        ballast_bytes: int = 16 * MIB,
        wake: Callable[[], None],
    ) -> None:
        if durability == "none":
            raise ValueError("durability none is NullJournal's")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_network_file_system(directory)
        with ExitStack() as undo:
            self._lock = lock_directory(directory)
            undo.callback(os.close, self._lock)
            self._store = Store(directory / "journal.db", power_safe=durability == "power")
            undo.callback(self._store.close)
            self._segments = Segments(directory / "bodies", segment_bytes)
            self._cursor = Cursor(self._segments.adopt(self._store.bodies()), segment_bytes)
            self._last = self._store.last
            ballast = Ballast(directory / "ballast", ballast_bytes)
            disk = Disk(self._store, self._segments, ballast, durability)
            self._writer = Writer(disk, Pace(commit_rows, commit_s), self._last, wake)
            undo.pop_all()
        self._queue = self._writer.queue
        self._unwritten = self._writer.unwritten
        self._writer.start()

    @property
    def durable(self) -> int:
        """The position up to which everything is durable."""
        return self._writer.durable

    @property
    def full(self) -> bool:
        """Whether the disk is full: what is queued waits, new work is to be refused."""
        return self._writer.full

    @property
    def commits(self) -> Histogram:
        """What each commit took."""
        return self._writer.commits

    @property
    def failure(self) -> JournalError | None:
        """What ended the writer; nothing becomes durable after it."""
        return self._writer.failure

    def append(
        self, order: int, kind: str, header: bytes, body: Sequence[Any] = ()
    ) -> tuple[int, Location | None]:
        """Queue an entry; return its position and where its body will lie, without waiting.

        `body` holds buffers that nobody changes any more; they are kept until written.

        Raises: JournalError if the writer has failed.
        """
        location, frames = None, [memoryview(frame) for frame in body]
        if frames:
            length, crc = 0, 0
            for frame in frames:
                length += frame.nbytes
                crc = crc32(frame, crc)
            location = self._cursor.place(length, crc)
            self._unwritten[location.place] = frames
        position = self._next()
        self._queue.put(Append(position, order, kind, header, location, frames))
        return position, location

    def put(self, key: str, value: bytes) -> int:
        """Queue a value that replaces its key's former one; return its position.

        Raises: JournalError if the writer has failed.
        """
        position = self._next()
        self._queue.put(Put(position, key, value))
        return position

    def drop(self, key: str) -> int:
        """Queue the removal of a key's value, if it has one; return its position.

        Raises: JournalError if the writer has failed.
        """
        position = self._next()
        self._queue.put(Drop(position, key))
        return position

    def forget(self, orders: Sequence[int]) -> int:
        """Queue the removal of everything that these orders own so far; return its position.

        Raises: JournalError if the writer has failed.
        """
        position = self._next()
        self._queue.put(Forget(position, tuple(orders)))
        return position

    def release(self, location: Location) -> None:
        """Queue that a body is no longer needed; its entry stays. It takes a position, too.

        Raises: JournalError if the writer has failed.
        """
        self._queue.put(Release(self._next(), location.place))

    def read_body(self, location: Location) -> memoryview:
        """Return a body that was appended and not released, written or not.

        Raises: JournalError, naming file and offset, if it is not what was appended.
        """
        frames = self._unwritten.get(location.place)
        if frames is not None:
            return memoryview(b"".join(frames))
        return self._segments.read(location)

    def entries(self) -> Iterator[Stored]:
        """Yield what is committed, by position.

        Raises: JournalError.
        """
        return iter(self._store.entries())

    def values(self) -> dict[str, bytes]:
        """Return the committed values.

        Raises: JournalError.
        """
        return self._store.values()

    def statistics(self) -> dict[str, float]:
        """Return counts since the start, and what is held now; seconds and bytes by their names."""
        return {"queued": float(self._last - self.durable), **self._writer.statistics()}

    def close(self, deadline_s: float) -> None:
        """Commit what is queued and let go of the directory.

        Raises: JournalError if that fails, or is not done within `deadline_s`.
        """
        self._queue.put(None)
        self._writer.join(deadline_s)
        if self._writer.is_alive():
            self._writer.abandon()
            left = self._last - self.durable
            raise JournalError(f"{left} changes are not durable after {deadline_s} s")
        self._segments.close()
        self._store.close()
        os.close(self._lock)
        if self.failure is not None:
            raise self.failure

    def _next(self) -> int:
        if self._writer.failure is not None:
            raise self._writer.failure
        self._last += 1
        return self._last
