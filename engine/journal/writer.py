"""The journal's writer: one thread that takes what is queued and makes it durable in one go.

While there is much to do commits begin up to `Pace.apart_s` apart, so that changes gather; where
there is little, or after a pause, the next one begins almost at once. What is much shows over a
while: many rollouts that end together are still to be answered soon. What does not fit on a full
disk is kept and tried again. It knows changes, not what they mean.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from time import monotonic, sleep
from typing import Literal

from ..errors import DiskFull, JournalError
from ..figures import Histogram
from .segments import Ballast, Frames, Place, Segments
from .store import Append, Batch, Change, Forget, Release, Store, batch_length, fold, split

Durability = Literal["none", "process", "power"]
MANY_PER_S = 10_000  # changes; from there on commits begin as far apart as they may
SMOOTHED_S = 0.25
FIRST_RETRY_S = 0.2
RETRY_S = 1.0


class Mailbox:
    """Changes from the broker's thread to the writer's; None asks the writer to end.

    A queue that hands over one item at a time takes and gives the interpreter's lock for each.
    """

    def __init__(self) -> None:
        self._items: deque[Change | None] = deque()
        self._filled = threading.Event()

    def put(self, change: Change | None) -> None:
        """Add a change."""
        self._items.append(change)
        if not self._filled.is_set():
            self._filled.set()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until there is something; return whether there is."""
        return self._filled.wait(timeout_s)

    def take(self) -> list[Change | None]:
        """Return everything that is there."""
        self._filled.clear()
        return [self._items.popleft() for _ in range(len(self._items))]


@dataclass(frozen=True, slots=True)
class Pace:
    """How much one commit takes, and how far apart commits begin."""

    rows: int
    apart_s: float


class Gap:
    """How long after a commit began the next may: the longer the more there was to do lately."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._changes_per_s = 0.0

    def committed(self, changes: int, gathered_s: float) -> None:
        """Take a commit of so many changes, that began so long after the one before."""
        weight = min(1.0, gathered_s / SMOOTHED_S)
        self._changes_per_s += weight * (changes / gathered_s - self._changes_per_s)

    @property
    def seconds(self) -> float:
        """Return it."""
        return self._most_s * min(1.0, self._changes_per_s / MANY_PER_S)


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
        self.queue = Mailbox()
        self.unwritten: dict[Place, Frames] = {}
        self.durable = last
        self.full = False
        self.failure: JournalError | None = None
        self.commits = Histogram()  # what each commit took
        self._began = 0.0
        self._gap = Gap(pace.apart_s)
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
            self.queue.wait(None)
            self._let_gather()
        for change in self.queue.take():
            self._accept(change)

    def _let_gather(self) -> None:
        """Begin commits apart, the further the more there was to do lately."""
        left_s = self._began + self._gap.seconds - monotonic()
        if left_s > 0 and not self._closing:
            sleep(left_s)

    def _take_until(self, deadline: float, is_reason: Callable[[Change | None], bool]) -> None:
        while (left_s := deadline - monotonic()) > 0 and self.queue.wait(left_s):
            taken = self.queue.take()
            for change in taken:
                self._accept(change)
            if any(map(is_reason, taken)):
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
        before, self._began = self._began, monotonic()
        batch = self._disk.commit(changes)
        took_s = monotonic() - self._began
        self._gap.committed(len(changes), self._began - before)
        counts = self._counts
        self.commits.add(took_s)
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
