"""Body segments: append-only, preallocated files that hold bodies beside the journal's database.

    bodies/000001.seg ...   one body after the other, no framing; the database knows the places
    bodies/spare.seg        a segment whose bodies are all dead, kept to be written again

Places are handed out in memory on the broker's thread (`Cursor`), so a place is known before its
file exists; files are made, written, synced and removed by the journal's writer (`Segments`).
This module knows neither the database nor what a body means.

Invariants: a place is handed out once and never again after a restart; a file is removed or
written anew only when no committed row refers to it; bytes that no row refers to (a torn tail, the
former content of a recycled file) are never read.

Bound: a segment lives as long as its longest-lived body, so long-lived bodies scattered one to a
segment hold up to `segment_bytes` each. Nothing is compacted, because a body's `Location` never
changes while the broker holds it; `segments` x `segment_bytes` beside `live_bytes` in the
journal's statistics shows what that costs.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from isal.isal_zlib import crc32
from msgspec import Struct

from ..errors import DiskFull, JournalError
from ..files import sync_directory

IOV_MAX = 1024  # Linux takes no more buffers in one pwritev
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

Place = tuple[int, int]  # segment and offset: what tells bodies apart
Frames = Sequence[memoryview]


class Location(Struct, frozen=True):
    """Where a body lies: `length` bytes at `offset` of a segment, with this CRC-32."""

    segment: int
    offset: int
    length: int
    crc: int

    @property
    def place(self) -> Place:
        """What tells this body from all others."""
        return self.segment, self.offset


@contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what the file system refuses into errors that name the file.

    Raises: DiskFull if there is no space or quota left, JournalError for anything else.
    """
    try:
        yield
    except OSError as error:
        kind = DiskFull if error.errno in NO_SPACE else JournalError
        raise kind(f"{path}: cannot {doing}: {error.strerror}") from error


class Ballast:
    """Space set aside, so that deletions still go through on a full disk."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes

    def free(self) -> None:
        """Give the space up."""
        self._path.unlink(missing_ok=True)

    def restore(self) -> None:
        """Take the space back; all of it or nothing.

        Raises: DiskFull, JournalError.
        """
        if not self._size_bytes:
            return
        try:
            with storage_errors(self._path, "set space aside"), self._path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, self._size_bytes)
        except JournalError:
            self.free()
            raise


class Cursor:
    """Hands out places in rising order, in memory only; used on the broker's thread."""

    def __init__(self, newest: int, segment_bytes: int) -> None:
        self._segment_bytes = segment_bytes
        self._newest = newest
        self._current = newest
        self._offset = segment_bytes  # a start begins a new segment: no old byte is written again

    def place(self, length: int, crc: int) -> Location:
        """Return the place of the next body; one that fits no segment gets one of its own."""
        taken = max(length, 1)  # an empty body still needs a place that is its own
        if taken > self._segment_bytes:
            self._newest += 1
            return Location(self._newest, 0, length, crc)
        if self._offset + taken > self._segment_bytes:
            self._newest += 1
            self._current, self._offset = self._newest, 0
        location = Location(self._current, self._offset, length, crc)
        self._offset += taken
        return location


class Segments:
    """The segment files, and which bodies in them committed rows still refer to.

    `read` is for any thread; everything else belongs to the thread that commits.
    """

    def __init__(self, directory: Path, segment_bytes: int) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._spare = directory / "spare.seg"
        self._current = 0  # the newest segment with a committed body that takes more
        self._files: dict[int, int] = {}
        self._renamed = False
        self._owners: dict[Place, tuple[int, int, int]] = {}  # order, position, length
        self._places: dict[int, set[Place]] = {}  # by order
        self._live: dict[int, int] = {}  # bodies, by segment
        self._dead: set[int] = set()
        self.live_bytes = 0
        with storage_errors(directory, "make the directory"):
            directory.mkdir(mode=0o700, exist_ok=True)

    def __len__(self) -> int:
        """Count the segments that exist, without the spare."""
        return len(self._live)

    def adopt(self, bodies: Iterable[tuple[int, int, Location]]) -> int:
        """Take over (order, position, location) of every body kept; return the newest segment.

        Files and tails that no body lies in are given back.

        Raises: JournalError, naming the file and the offset of a body that is not there.
        """
        ends: dict[int, tuple[int, int]] = {}  # the last body's end and offset, by segment
        for order, position, location in bodies:
            self.keep(order, position, location)
            span = (location.offset + location.length, location.offset)
            ends[location.segment] = max(span, ends.get(location.segment, span))
        self._current = 0
        for number, (end, offset) in ends.items():
            self._trim(number, end, offset)
        found = [int(path.stem) for path in self._directory.glob("[0-9]*.seg")]
        for number in set(found) - ends.keys():
            self._path(number).unlink()
        return max([0, *found])

    def _trim(self, number: int, end: int, offset: int) -> None:
        path = self._path(number)
        with storage_errors(path, f"find the body at offset {offset}"):
            if path.stat().st_size < end:
                raise JournalError(f"{path}: ends within the body at offset {offset}")
            os.truncate(path, end)

    def write(self, bodies: Iterable[tuple[Location, Frames]], *, sync: bool) -> None:
        """Write bodies to their places and, if `sync`, make them durable; may be repeated.

        Raises: DiskFull, JournalError.
        """
        runs = list(_runs(bodies))
        is_one_call = len(runs) == 1 and len(runs[0][1]) <= IOV_MAX
        flags = os.RWF_DSYNC if sync and is_one_call else 0
        for location, frames in runs:
            file = self._open(location)
            with storage_errors(self._path(location.segment), "write"):
                _write(file, frames, location.offset, flags)
        for number in {run.segment for run, _ in runs} if sync and not flags else ():
            with storage_errors(self._path(number), "sync"):
                os.fdatasync(self._files[number])
        if self._renamed and sync:
            with storage_errors(self._directory, "sync the directory"):
                sync_directory(self._directory)
        self._renamed = False

    def _open(self, location: Location) -> int:
        number = location.segment
        if number in self._files:
            return self._files[number]
        path = self._path(number)
        size_bytes = max(self._segment_bytes, location.length)
        with storage_errors(path, "open"):
            if size_bytes == self._segment_bytes:
                with suppress(FileNotFoundError):
                    self._spare.rename(path)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._files[number] = file
            self._renamed = True
            self._live.setdefault(number, 0)
            self._dead.add(number)
            _preallocate(file, size_bytes)
        return file

    def keep(self, order: int, position: int, location: Location) -> None:
        """Count a body whose row is committed."""
        place, number = location.place, location.segment
        self._owners[place] = (order, position, location.length)
        self._places.setdefault(order, set()).add(place)
        self._live[number] = self._live.get(number, 0) + 1
        self._dead.discard(number)
        self.live_bytes += location.length
        if location.length <= self._segment_bytes:
            self._current = max(self._current, number)

    def owner(self, place: Place) -> tuple[int, int] | None:
        """Return order and position of the committed row that needs the body, if one does."""
        found = self._owners.get(place)
        return found and found[:2]

    def drop(self, place: Place) -> None:
        """Stop counting a body whose row no longer needs it; dropping twice is harmless."""
        found = self._owners.pop(place, None)
        if found is None:
            return
        order, _, length = found
        places = self._places[order]
        places.discard(place)
        if not places:
            del self._places[order]
        self.live_bytes -= length
        self._live[place[0]] -= 1
        if not self._live[place[0]]:
            self._dead.add(place[0])

    def drop_order(self, order: int) -> None:
        """Stop counting every body of an order."""
        for place in tuple(self._places.get(order, ())):
            self.drop(place)

    def retire(self, *, recycle: bool) -> None:
        """Close what takes no more bodies; remove or recycle the segments without a live one.

        Raises: DiskFull, JournalError.
        """
        for number in [number for number in self._files if number != self._current]:
            os.close(self._files.pop(number))
        for number in [number for number in self._dead if number != self._current]:
            self._discard(self._path(number), recycle=recycle)
            self._dead.discard(number)
            self._live.pop(number, None)
        if not recycle:
            self._spare.unlink(missing_ok=True)

    def _discard(self, path: Path, *, recycle: bool) -> None:
        with storage_errors(path, "remove"):
            if recycle and not self._spare.exists() and path.stat().st_size == self._segment_bytes:
                path.rename(self._spare)
            else:
                path.unlink(missing_ok=True)

    def read(self, location: Location) -> memoryview:
        """Read a body that was written.

        Raises: JournalError, naming file and offset, if it is not there or not what was written.
        """
        path = self._path(location.segment)
        with storage_errors(path, f"read the body at offset {location.offset}"):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(file, location.length, location.offset)
            finally:
                os.close(file)
        if len(data) != location.length or crc32(data) != location.crc:
            place = f"{path}: offset {location.offset}"
            raise JournalError(f"{place}: {location.length} bytes differ from what was written")
        return memoryview(data)

    def close(self) -> None:
        """Close every file."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:06d}.seg"


def _preallocate(file: int, size_bytes: int) -> None:
    before = os.fstat(file).st_size
    try:
        os.posix_fallocate(file, 0, size_bytes)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        os.ftruncate(file, before)  # the bodies at hand may still fit: writes extend the file


def _runs(bodies: Iterable[tuple[Location, Frames]]) -> Iterator[tuple[Location, list[memoryview]]]:
    """Join bodies that lie side by side, so that one system call writes them."""
    first: Location | None = None
    end = 0
    frames: list[memoryview] = []
    for location, body in sorted(bodies, key=lambda pair: pair[0].place):
        if first is None or location.segment != first.segment or location.offset != end:
            if first is not None:
                yield first, frames
            first, end, frames = location, location.offset, []
        frames.extend(body)
        end += location.length
    if first is not None:
        yield first, frames


def _write(file: int, frames: list[memoryview], offset: int, flags: int) -> None:
    pending = [frame for frame in frames if frame.nbytes]
    while pending:
        written = os.pwritev(file, pending[:IOV_MAX], offset, flags)
        offset += written
        done = 0
        while done < len(pending) and written >= pending[done].nbytes:
            written -= pending[done].nbytes
            done += 1
        del pending[:done]
        if written:
            pending[0] = pending[0].cast("B")[written:]
