"""The journal's directory: its lock, its file system, its database, and what a batch of it is.

    lock         held with flock for as long as a broker has the journal open; names its process
    journal.db   SQLite in WAL mode: the rows, and where the bodies lie
    bodies/      the segments (segments.py)
    ballast      space that is freed when the disk is full (segments.py)

A batch is one SQL statement: an insert into a view whose trigger deletes, inserts and updates.
Each call into sqlite3 gives up the interpreter's lock and must win it back from the broker's busy
thread; one call for a batch instead of one for a row is what keeps a commit short
(bench/journal.py). This module knows no thread and no queue.

Invariant: a batch is committed whole or not at all.
"""

import fcntl
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import orjson
from msgspec import Struct

from ..errors import DiskFull, JournalError
from ..files import sync_directory
from .segments import NO_SPACE, Frames, Location, Place, storage_errors

BATCH_BYTES = 16 * 1024 * 1024  # bodies in one commit: tens of milliseconds of a slow disk
SCHEMA_VERSION = 2  # as the last statement of SCHEMA sets it
PROBE_BYTES = 64 * 1024  # more than the page or two that a failed write of SQLite asked for
MOUNTINFO = Path("/proc/self/mountinfo")
NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "daos", "fuse", "gfs2", "glusterfs", "gpfs", "lustre"}
    | {"ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs"}
)
SCHEMA = """
BEGIN;
CREATE TABLE entries (
    owner INTEGER, position INTEGER, kind TEXT, header BLOB,
    segment INTEGER, offset INTEGER, length INTEGER, crc INTEGER,
    PRIMARY KEY (owner, position)
) WITHOUT ROWID;
CREATE TABLE pairs (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE stream (last INTEGER);
INSERT INTO stream VALUES (0);
CREATE VIEW batch AS
    SELECT 0 AS gone, 0 AS rows, 0 AS pairs, 0 AS dropped, 0 AS released, 0 AS data, 0 AS last;
CREATE TRIGGER commit_batch INSTEAD OF INSERT ON batch BEGIN
    DELETE FROM entries WHERE owner IN (SELECT value FROM json_each(NEW.gone));
    INSERT INTO entries SELECT
        json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        substr(NEW.data, json_extract(value, '$[3]'), json_extract(value, '$[4]')),
        json_extract(value, '$[5]'), json_extract(value, '$[6]'),
        json_extract(value, '$[7]'), json_extract(value, '$[8]')
        FROM json_each(NEW.rows);
    INSERT OR REPLACE INTO pairs SELECT
        json_extract(value, '$[0]'),
        substr(NEW.data, json_extract(value, '$[1]'), json_extract(value, '$[2]'))
        FROM json_each(NEW.pairs);
    DELETE FROM pairs WHERE key IN (SELECT value FROM json_each(NEW.dropped));
    UPDATE entries SET segment = NULL WHERE (owner, position) IN (
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]')
        FROM json_each(NEW.released));
    UPDATE stream SET last = max(last, NEW.last);
END;
PRAGMA user_version = 2;
COMMIT;
"""


class Stored(Struct, frozen=True):
    """One entry that the journal kept; `location` is None without a body, or once released."""

    position: int
    order: int
    kind: str
    header: bytes
    location: Location | None


class Append(Struct, frozen=True):
    """A new entry, and its body's frames where it has one."""

    position: int
    order: int
    kind: str
    header: bytes
    location: Location | None
    frames: Frames


class Put(Struct, frozen=True):
    """A value that replaces its key's former one."""

    position: int
    key: str
    value: bytes


class Drop(Struct, frozen=True):
    """A key's value goes."""

    position: int
    key: str


class Forget(Struct, frozen=True):
    """Every entry of these orders that came before goes."""

    position: int
    orders: tuple[int, ...]


class Release(Struct, frozen=True):
    """A body goes; its entry stays."""

    position: int
    place: Place


Change = Append | Put | Drop | Forget | Release


@dataclass(slots=True)
class Batch:
    """What a run of changes comes to; an entry that is forgotten in it is never written."""

    last: int = 0
    forgotten: set[int] = field(default_factory=set)
    appends: dict[int, list[Append]] = field(default_factory=dict)  # by order
    values: dict[str, bytes | None] = field(default_factory=dict)  # None: it goes
    released: dict[Place, tuple[int, int]] = field(default_factory=dict)  # order and position

    def entries(self) -> Iterator[Append]:
        """Yield the entries to write."""
        for entries in self.appends.values():
            yield from entries

    def bodies(self) -> Iterator[tuple[Location, Frames]]:
        """Yield the bodies to write."""
        for entry in self.entries():
            if entry.location is not None:
                yield entry.location, entry.frames


def fold(changes: Sequence[Change], owner: Callable[[Place], tuple[int, int] | None]) -> Batch:
    """Sum up changes, oldest first; `owner` finds the committed entry of a body."""
    batch = Batch()
    placed: dict[Place, tuple[int, int]] = {}
    for change in changes:
        batch.last = change.position
        match change:
            case Append(order=order, position=position, location=location):
                batch.appends.setdefault(order, []).append(change)
                if location is not None:
                    placed[location.place] = (order, position)
            case Put():
                batch.values[change.key] = change.value
            case Drop(key=key):
                batch.values[key] = None
            case Forget():
                batch.forgotten.update(change.orders)
                for order in change.orders:
                    batch.appends.pop(order, None)
            case Release(place=place):
                row = placed.get(place) or owner(place)
                if row is not None:
                    batch.released[place] = row
    return batch


def batch_length(pending: Iterable[Change], rows: int) -> int:
    """Count the changes of the next batch: up to `rows`, and about BATCH_BYTES of bodies."""
    count, size_bytes = 0, 0
    for change in islice(pending, rows):
        if isinstance(change, Append) and change.location is not None:
            size_bytes += change.location.length
        if count and size_bytes > BATCH_BYTES:
            break
        count += 1
    return count


def split(
    pending: Iterable[Change], owner: Callable[[Place], tuple[int, int] | None]
) -> tuple[list[Change], list[Change]]:
    """Part the deletions that may go ahead from the rest, and leave out what they delete."""
    forgotten_at = {
        order: change.position
        for change in pending
        if isinstance(change, Forget)
        for order in change.orders
    }
    relief: list[Change] = []
    rest: list[Change] = []
    waiting: set[int] = set()
    for change in pending:
        if isinstance(change, Append):
            if change.position > forgotten_at.get(change.order, 0):
                rest.append(change)
                waiting.add(change.order)
        elif isinstance(change, Forget):
            relief.append(change)
        elif isinstance(change, Release) and (row := owner(change.place)):
            (rest if row[0] in waiting else relief).append(change)
        else:
            rest.append(change)
    return relief, rest


class Store:
    """The database; `commit` is the writer's, the rest is for any thread."""

    def __init__(self, path: Path, *, power_safe: bool) -> None:
        self._path = path
        self._lock = Lock()
        with self._errors("open"):
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # No second process reads it, so the index of the WAL can stay off the disk.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute(f"PRAGMA synchronous = {'FULL' if power_safe else 'NORMAL'}")
            self._expect_schema()
            self.last: int = self._database.execute("SELECT last FROM stream").fetchone()[0]
        with storage_errors(path.parent, "sync the directory"):
            sync_directory(path.parent)

    def _expect_schema(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not version and not tables:
            self._database.executescript(SCHEMA)
        elif version != SCHEMA_VERSION:
            raise JournalError(
                f"{self._path}: schema version {version}, this rollmq reads {SCHEMA_VERSION}: "
                "use the rollmq that wrote it, or another directory"
            )

    def commit(self, batch: Batch) -> None:
        """Commit a batch whose bodies are written.

        Raises: DiskFull if nothing was written for want of space, JournalError.
        """
        values = _statement_values(batch)
        with self._errors("commit"), self._lock:
            self._database.execute("INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def entries(self) -> list[Stored]:
        """Return every committed entry, by position.

        Raises: JournalError.
        """
        return [
            Stored(position, order, kind, header, None if row[0] is None else Location(*row))
            for position, order, kind, header, *row in self._rows(
                "SELECT position, owner, kind, header, segment, offset, length, crc"
                " FROM entries ORDER BY position"
            )
        ]

    def bodies(self) -> list[tuple[int, int, Location]]:
        """Return order, position and location of every body kept.

        Raises: JournalError.
        """
        rows = self._rows(
            "SELECT owner, position, segment, offset, length, crc"
            " FROM entries WHERE segment IS NOT NULL"
        )
        return [(order, position, Location(*row)) for order, position, *row in rows]

    def values(self) -> dict[str, bytes]:
        """Return every committed value by its key.

        Raises: JournalError.
        """
        return dict(self._rows("SELECT key, value FROM pairs"))

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with self._errors("read"), self._lock:
            return self._database.execute(query).fetchall()

    def close(self) -> None:
        """Close the database."""
        with self._errors("close"):
            self._database.close()

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            full = code == sqlite3.SQLITE_FULL or self._probe_is_refused()
            kind = DiskFull if full else JournalError
            raise kind(f"{self._path}: cannot {doing}: {error}") from error

    def _probe_is_refused(self) -> bool:
        """Tell a used-up quota, which SQLite reports as a failed write, from a failing disk."""
        probe = self._path.with_name("probe")
        try:
            with probe.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, PROBE_BYTES)
        except OSError as error:
            return error.errno in NO_SPACE
        else:
            return False
        finally:
            probe.unlink(missing_ok=True)


def _statement_values(batch: Batch) -> tuple[str, str, str, str, str, bytes, int]:
    data = [b"\0"]  # SQL takes a part of an empty blob for NULL
    rows, pairs, at = [], [], 2  # SQL counts bytes from 1
    for entry in batch.entries():
        where = entry.location
        place = (where.segment, where.offset, where.length, where.crc) if where else (None,) * 4
        rows.append((entry.order, entry.position, entry.kind, at, len(entry.header), *place))
        data.append(entry.header)
        at += len(entry.header)
    dropped = [key for key, value in batch.values.items() if value is None]
    kept = [(key, value) for key, value in batch.values.items() if value is not None]
    for key, value in kept:
        pairs.append((key, at, len(value)))
        data.append(value)
        at += len(value)
    lists = (list(batch.forgotten), rows, pairs, dropped, list(batch.released.values()))
    gone, made, put, lost, released = (orjson.dumps(items).decode() for items in lists)
    return gone, made, put, lost, released, b"".join(data), batch.last


def lock_directory(directory: Path) -> int:
    """Return a file whose lock keeps every other broker out until it is closed.

    Raises: JournalError, naming the process that holds it.
    """
    path = directory / "lock"
    with storage_errors(path, "lock"):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(file, b"%-10d\n" % os.getpid(), 0)
        except BlockingIOError:
            holder = os.read(file, 16).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise JournalError(
                f"{directory}: process {holder} has this journal open: stop that broker first, "
                "or give this one another directory"
            ) from None
    return file


def refuse_network_file_system(directory: Path, mountinfo: Path = MOUNTINFO) -> None:
    """Refuse a directory whose file system does not keep SQLite's WAL safe.

    Raises: JournalError, naming the mount.
    """
    mount, kind = "", ""
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = _unescape(before.split()[4])
        if directory.resolve().is_relative_to(point) and len(point) >= len(mount):
            mount, kind = point, after.split()[0]
    if kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse."):
        raise JournalError(
            f"{directory}: {mount} is a network or FUSE file system ({kind}), where SQLite's WAL "
            "is not safe: use a directory on a node-local disk, or durability none"
        )


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
