"""What is known of a sandbox that runs, on disk and in memory.

Job: the record of a sandbox, its file, and whether the process that it names still lives.
Does not know: how sandboxes are made, and who may have them.
Invariants: a record is written whole or not at all, before anything that it names exists, and
removed after everything that it names is gone. A process id is believed only with its start time.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from engine.errors import BoundaryError
from engine.files import write_whole
from engine.typed import Mismatch, compile_decoder

from .contract import Limits, Owner
from .enter import start_time

MARK = "ROLLMQ_SANDBOX"  # in the environment of everything that the provider `process` starts
LOOKS = 3  # at an environment that is empty although no exec is under way: another may have begun


@dataclass(frozen=True, slots=True)
class Record:
    """A sandbox.

    pid, started: its first process and that one's start time in clock ticks since boot; 0 if it
    has none. uid: the host's user that it runs as. directory: of the host, removed with it.
    """

    name: str
    provider: str
    image: str
    pid: int
    started: int
    uid: int
    directory: str
    workdir: str
    limits: Limits
    environment: dict[str, str] = field(default_factory=dict)
    owner: Owner | None = None

    @property
    def shared_dir(self) -> Path:
        """The directory that is bound into the sandbox."""
        return Path(self.directory) / "shared"

    def is_alive(self) -> bool:
        """Whether its first process runs; one without is alive as long as its directory is."""
        if self.pid:
            return start_time(self.pid) == self.started
        return self.provider == "process" and Path(self.directory).is_dir()


_DECODE = compile_decoder(Record)


def encode_record(record: Record) -> bytes:
    """Return a record as JSON."""
    return orjson.dumps(asdict(record))


def decode_record(text: bytes) -> Record:
    """Return a record from JSON. Raises: ValueError if it is none."""
    try:
        record: Record = _DECODE(orjson.loads(text))
    except Mismatch as wrong:
        raise ValueError(f"no record of a sandbox: {wrong}") from None
    return record


def write_record(directory: Path, record: Record) -> None:
    """Write a record's file, or replace it. Raises: OSError."""
    write_whole(directory / f"{record.name}.json", encode_record(record))


def forget_record(directory: Path, name: str) -> None:
    """Remove a record's file, if there is one. Raises: OSError."""
    (directory / f"{name}.json").unlink(missing_ok=True)


def read_records(directory: Path) -> Iterator[Record]:
    """Return every record in a directory; files that are none are left alone."""
    for path in sorted(directory.glob("*.json")):
        with suppress(OSError, ValueError):
            yield decode_record(path.read_bytes())


def kill(pid: int, started: int) -> int | None:
    """Send SIGKILL to a process if it is the one meant; return its pidfd, None if it is gone.

    Raises: OSError if it may not be killed.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) != started:
        os.close(handle)
        return None
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    return handle


def kill_marked(name: str) -> int:
    """Kill every process that carries a sandbox's mark in its environment.

    Returns how many were killed or have to be looked at again. Only the provider `process` needs
    it: all others have a process-id namespace.
    """
    mark, count = f"{MARK}={name}".encode(), 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(path.name)
            started = start_time(pid)
            environment = _environment(path) if started else b""
        except OSError:
            continue  # it ended, or is somebody else's
        if environment is None:
            count += 1
        elif mark in environment.split(b"\0") and (handle := kill(pid, started)) is not None:
            os.close(handle)
            count += 1
    return count


def _environment(process: Path) -> bytes | None:
    """Return a process's environment, None while an exec of it has replaced the old one by none.

    The kernel shows an empty environment and an empty command line until the new program's are in
    place, both at once. Raises: OSError.
    """
    for _ in range(LOOKS):
        if found := (process / "environ").read_bytes():
            return found
        if not _has_memory(process):
            break
        if not (process / "cmdline").read_bytes():
            return None
    return b""


def _has_memory(process: Path) -> bool:
    """Whether it is neither the kernel's own nor about to be gone."""
    try:
        (process / "exe").readlink()
    except FileNotFoundError:
        return False
    return True


def remove_tree(directory: Path) -> None:
    """Remove a directory whatever modes its own directories have; follows no link.

    Raises: BoundaryError("sandbox") if something is left.
    """
    if directory.is_symlink() or not directory.exists():
        return
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        for place, _, _ in os.walk(directory):
            Path(place).chmod(0o700)
            for entry in os.scandir(place):
                if entry.is_dir(follow_symlinks=False):
                    Path(entry.path).chmod(0o700)
        shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        raise BoundaryError("sandbox", f"{directory} cannot be removed")
