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
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Any, Literal

from .errors import DiskFull, JournalError
from .journal_store import (
    Append,
    Batch,
    Change,
    Forget,
    Put,
    Release,
    Store,
    Stored,
    batch_length,
    fold,
    lock_directory,
    refuse_network_file_system,
    split,
)
from .segments import Ballast, Cursor, Frames, Location, Place, Segments

__all__ = ["Durability", "Journal", "Location", "NullJournal", "Stored"]

Durability = Literal["none", "process", "power"]

MIB = 1024 * 1024
FIRST_RETRY_S = 0.2
RETRY_S = 1.0
GIVE_WAY_EVERY_S = 0.0005  # a commit needs the interpreter about six times
GIVE_WAY_S = 1e-6  # Linux makes it 60 us, about what the writer needs to wake


class NullJournal:
    """The journal of durability `none`: everything is durable at once, nothing is kept.

    A body has no location; whoever appends it keeps it.
    """

    keeps = False  # so nobody needs to encode what is appended

    def __init__(self) -> None:
        self.durable = 0
        self.full = False
        self.failure: JournalError | None = None

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

    def give_way(self) -> None:
        """Do nothing: there is no writer."""

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
    `failure` is set. Commits begin at least `commit_s` apart, so that a busy broker's gather into
    batches; after a pause the next one begins at once.

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
        commit_s: float = 0.003,
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
        self._give_way_at = 0.0
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
                crc = zlib.crc32(frame, crc)
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

    def give_way(self) -> None:
        """Let the writer run if it has work: for every turn of a loop that may never rest.

        A thread that gives up the interpreter's lock for microseconds at a time, as sockets do,
        takes it back before the writer has woken; commits then take hundreds of milliseconds.
        """
        if self._writer.committing and monotonic() >= self._give_way_at:
            sleep(GIVE_WAY_S)
            self._give_way_at = monotonic() + GIVE_WAY_EVERY_S

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


@dataclass(frozen=True, slots=True)
class Pace:
    """How much one commit takes, and how far apart commits begin."""

    rows: int
    apart_s: float


class Disk:
    """The three things that a commit touches, as one."""

    def __init__(
        self, store: Store, segments: Segments, ballast: Ballast, durability: Durability
    ) -> None:
        self.store = store
        self.segments = segments
        self.ballast = ballast
        self._power_safe = durability == "power"

    def commit(self, changes: Sequence[Change]) -> Batch:
        """Make changes durable: the bodies, then the rows.

        Raises: DiskFull, JournalError; nothing is committed then, and it may be tried again.
        """
        batch = fold(changes, self.segments.owner)
        self.segments.write(batch.bodies(), sync=self._power_safe)
        self.store.commit(batch)
        for order in batch.forgotten:
            self.segments.drop_order(order)
        for entry in batch.entries():
            if entry.location is not None:
                self.segments.keep(entry.order, entry.position, entry.location)
        for place in batch.released:
            self.segments.drop(place)
        return batch


class Writer(threading.Thread):
    """The thread that makes what is queued durable, in order; None on the queue ends it."""

    def __init__(self, disk: Disk, pace: Pace, last: int, wake: Callable[[], None]) -> None:
        super().__init__(name="journal", daemon=True)
        self.queue: SimpleQueue[Change | None] = SimpleQueue()
        self.unwritten: dict[Place, Frames] = {}
        self.durable = last
        self.full = False
        self.committing = False
        self.failure: JournalError | None = None
        self._began = 0.0
        self._disk = disk
        self._pace = pace
        self._wake = wake
        self._pending: deque[Change] = deque()
        self._taken = last
        self._closing = False
        self._abandoned = False
        self._retry_s = FIRST_RETRY_S
        self._counts = dict.fromkeys(("rows", "bytes", "commits", "commit_s", "commit_max_s"), 0.0)
        self._restore_ballast()

    def abandon(self) -> None:
        """End the thread at its next step, whatever is queued."""
        self._abandoned = True
        self.queue.put(None)

    def statistics(self) -> dict[str, float]:
        """Return counts since the start and what is held now."""
        segments = self._disk.segments
        return {
            **self._counts,
            "segments": float(len(segments)),
            "live_bytes": float(segments.live_bytes),
            "full": float(self.full),
        }

    def run(self) -> None:
        """Commit until told to end; an error ends it, too, and is left in `failure`."""
        try:
            while not self._abandoned and (self._pending or not self._closing):
                self._step()
        except JournalError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001 - a silent end would leave the broker waiting
            self.failure = JournalError(f"the journal's writer failed: {error!r}")
            self.failure.__cause__ = error
        self._wake()

    def _step(self) -> None:
        self._take()
        try:
            if self.full:
                self._relieve()
            self._commit_next()
        except DiskFull:
            self.full = True
        else:
            self.full = False
            self._retry_s = FIRST_RETRY_S
        self.committing = False
        self._wake()

    def _restore_ballast(self) -> None:
        try:
            self._disk.ballast.restore()
        except DiskFull:
            self.full = True

    def _take(self) -> None:
        """Wait until there is something to do, then take all that is queued."""
        if self.full:
            self._take_until(monotonic() + self._retry_s, _frees_space)
            self._retry_s = RETRY_S
        elif not self._pending:
            self._accept(self.queue.get())
            self._let_gather()
        self.committing = True
        for _ in range(self.queue.qsize()):
            self._accept(self.queue.get())

    def _let_gather(self) -> None:
        """Begin commits no closer together than the pace; after a pause, at once."""
        left_s = self._began + self._pace.apart_s - monotonic()
        if left_s > 0 and not self._closing:
            sleep(left_s)

    def _take_until(self, deadline: float, is_reason: Callable[[Change | None], bool]) -> None:
        while (left_s := deadline - monotonic()) > 0:
            try:
                change = self.queue.get(timeout=left_s)
            except Empty:
                return
            self._accept(change)
            if is_reason(change):
                return

    def _accept(self, change: Change | None) -> None:
        if change is None:
            self._closing = True
        else:
            self._pending.append(change)
            self._taken = change.position

    def _commit_next(self) -> None:
        """Commit the oldest changes that make one batch."""
        count = batch_length(self._pending, self._pace.rows)
        if count:
            taken = list(islice(self._pending, count))
            self._commit(taken)
            for _ in taken:
                self._pending.popleft()
            self._advance(taken)

    def _commit(self, changes: Sequence[Change]) -> None:
        self._began = monotonic()
        batch = self._disk.commit(changes)
        took_s = monotonic() - self._began
        counts = self._counts
        counts["commits"] += 1
        counts["rows"] += sum(map(len, batch.appends.values()))
        counts["bytes"] += sum(location.length for location, _ in batch.bodies())
        counts["commit_s"] = took_s
        counts["commit_max_s"] = max(took_s, counts["commit_max_s"])

    def _advance(self, done: Iterable[Change]) -> None:
        self.durable = self._pending[0].position - 1 if self._pending else self._taken
        for change in done:
            if isinstance(change, Append) and change.location is not None:
                self.unwritten.pop(change.location.place, None)
        self._disk.segments.retire(recycle=not self.full)

    def _relieve(self) -> None:
        """Let deletions go ahead on the ballast's space; what they free may end the shortage.

        Raises: DiskFull while the ballast does not fit again.
        """
        relief, rest = split(self._pending, self._disk.segments.owner)
        if relief:
            self._disk.ballast.free()
            self._commit(relief)
            left = {change.position for change in rest}
            done = [change for change in self._pending if change.position not in left]
            self._pending = deque(rest)
            self._advance(done)
        self._disk.ballast.restore()


def _frees_space(change: Change | None) -> bool:
    return change is None or isinstance(change, Forget | Release)
