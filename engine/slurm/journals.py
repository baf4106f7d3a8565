"""Where a job's journal is, and how it comes to the node where the job goes on.

The journal lies on a disk of the broker's node. A record in the job's shared directory says which
node that is, and whether the journal was kept: copied there after an orderly end.

Job: decide where to go on from, keep a journal, bring one back.
Does not know: what is in a journal, or Slurm.
Invariants: a copy is there whole or not at all. Once a kept journal was taken into use it is not
used again: what it says would be older than what was answered since.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from ..files import write_whole

Origin = Literal["new", "local", "shared", "lost"]
RECORD, KEPT = "journal.json", "kept"
CARRIED = ("journal", "backends.json")


class Record(msgspec.Struct, frozen=True):
    """Where the journal is: on the disk of `node`, or `kept` in the shared directory."""

    node: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Places:
    """The run directory on this node's disk, and the job's directory that every node sees."""

    local: Path
    shared: Path


def origin(record: Record | None, node: str, *, is_local: bool) -> Origin:
    """Return where a broker that starts on `node` finds its journal.

    is_local: whether the node's disk has one.
    """
    if record is None:
        return "new"
    if record.kept:
        return "shared"
    return "local" if record.node == node and is_local else "lost"


def read_record(shared: Path) -> Record | None:
    """Return the record of a job. Raises: OSError; msgspec.DecodeError if it is no record."""
    path = shared / RECORD
    return msgspec.json.decode(path.read_bytes(), type=Record) if path.exists() else None


def take(places: Places, node: str) -> Origin:
    """Make the journal ready on this node, and note that it is here. Raises: OSError."""
    local = places.local / CARRIED[0]
    found = origin(read_record(places.shared), node, is_local=local.exists())
    if found != "local":
        _remove(places.local)
    kept = places.shared / KEPT
    if found == "shared":
        _copy(kept, places.local)
    _write_record(places.shared, Record(node, kept=False))
    shutil.rmtree(kept, ignore_errors=True)
    return found


def keep(places: Places, node: str) -> None:
    """Copy the journal of a broker that has ended to the shared directory. Raises: OSError."""
    kept = places.shared / KEPT
    shutil.rmtree(kept, ignore_errors=True)
    _copy(places.local, kept)
    _write_record(places.shared, Record(node, kept=True))


def _copy(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in CARRIED:
        found = source / name
        if found.is_dir():
            shutil.copytree(found, target / name, copy_function=_copy_file)
        elif found.exists():
            _copy_file(found, target / name)


def _copy_file(source: Path | str, target: Path | str) -> None:
    shutil.copyfile(source, target)
    with Path(target).open("rb") as file:
        os.fsync(file.fileno())


def _remove(local: Path) -> None:
    for name in CARRIED:
        found = local / name
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink(missing_ok=True)


def _write_record(shared: Path, record: Record) -> None:
    write_whole(shared / RECORD, msgspec.json.encode(record), mode=0o600, sync=True)
