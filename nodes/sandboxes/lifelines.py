"""The programs that hold sandboxes up, each tied to this process by a pipe.

Job: start such a program, as root in the name of a user without rights; end it; wait for its end.
Does not know: which program it is, or what it mounts.
Invariants: the first process inside reads a socket whose other end is here alone: whatever ends
this process ends the sandbox. A pipe would not do: programs inside could open it by /proc/1/fd and
hold it open. What the program says is read all along. Only process ids with their start times are
killed.
"""

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from engine.errors import BoundaryError

from . import launch
from .records import Record, kill

START_S = 60.0
END_S = 20.0
UNSTARTED_S = 5.0  # for a program whose sandbox was not up yet, and whose input has ended
ROUNDS = 100
POLL_S = 0.002
SAID_BYTES = 4000
IGNORE = "env --ignore-signal=CHLD"
FIRST = (
    *("/bin/sh", "-c"),
    f"exec > /dev/null 2> /dev/null; {IGNORE} true && exec {IGNORE} cat; exec cat",
)
"""What runs first inside: it waits for the end of its input, and lets the kernel bury orphans."""


@dataclass(slots=True)
class _Up:
    process: asyncio.subprocess.Process
    lifeline: socket.socket
    reading: asyncio.Task[None]
    said: bytearray
    uid: int


class Lifelines:
    """The programs of one provider; `stage` is a directory for root's mounts."""

    def __init__(self, stage: Path) -> None:
        self._stage = stage
        self._up: dict[str, _Up] = {}

    async def spawn(
        self,
        record: Record,
        command: list[str],
        environment: dict[str, str],
        sources: list[str],
        over: dict[str, str],
    ) -> None:
        """Start the program of a sandbox, its standard input the lifeline.

        `@N` in the command stands for sources[N], which the sandbox's user may not reach by itself;
        `over` are files of the host that the program shall see others in place of. Both matter
        only to root. Raises: OSError.
        """
        if record.uid != os.getuid():
            command = self._as_user(record.uid, command, sources, over)
        else:
            places = {f"@{number}": source for number, source in enumerate(sources)}
            command = [places.get(word, word) for word in command]
        end, lifeline = socket.socketpair()
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *command,
                stdin=end.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        )
        try:
            await asyncio.shield(starting)  # broken off it would kill the program, and it alone
        finally:
            await asyncio.wait([starting])
            end.close()
            if starting.exception() is None:
                self._note(record, starting.result(), lifeline)
            else:
                lifeline.close()

    def _note(
        self, record: Record, process: asyncio.subprocess.Process, lifeline: socket.socket
    ) -> None:
        said = bytearray()
        assert process.stderr is not None
        reading = asyncio.create_task(_read(process.stderr, said))
        self._up[record.name] = _Up(process, lifeline, reading, said, record.uid)

    def _as_user(
        self, uid: int, command: list[str], sources: list[str], over: dict[str, str]
    ) -> list[str]:
        self._stage.mkdir(mode=0o711, exist_ok=True)
        asked = {"uid": uid, "stage": str(self._stage), "sources": sources, "over": over}
        script = str(Path(launch.__file__).resolve())
        return [sys.executable, "-I", "-S", script, orjson.dumps(asked).decode(), *command]

    async def first(self, name: str) -> int:
        """Return the process id, here, of the first process inside, once it waits for its end.

        Raises: BoundaryError("sandbox") with the program's last words if it ended before.
        """
        up = self._up[name]
        process = up.process
        try:
            async with asyncio.timeout(START_S):
                while process.returncode is None:
                    for pid in descendants(process.pid):
                        if _is_first(pid):
                            return pid
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise BoundaryError("sandbox", f"not started within {START_S:g} s") from None
        await asyncio.wait([up.reading], timeout=1.0)
        said = up.said.decode("utf-8", "replace").strip()
        raise BoundaryError("sandbox", f"not started, status {process.returncode}: {said}")

    async def end(self, record: Record) -> None:
        """End a sandbox and its program, whoever started it.

        Raises: BoundaryError("sandbox") if either is still there after a deadline.
        """
        up = self._up.pop(record.name, None)
        if up is not None:
            up.lifeline.close()
        if record.pid:
            await end_process(record.pid, record.started)
        if up is not None and not await _has_ended(up, END_S if record.pid else UNSTARTED_S):
            why = f"{record.name}: its program did not end by SIGKILL"
            raise BoundaryError("sandbox", why)

    async def close(self) -> None:
        """Let go of every lifeline, and wait until the programs have ended.

        Raises: BoundaryError("sandbox") if one is still there after a deadline.
        """
        left, self._up = self._up, {}
        for up in left.values():
            up.lifeline.close()
        ended = await asyncio.gather(*(_has_ended(up, END_S) for up in left.values()))
        if not all(ended):
            raise BoundaryError("sandbox", "a program did not end by SIGKILL")


async def _has_ended(up: _Up, patience_s: float) -> bool:
    """Whether a program that was told to end has; after a while it is killed with what it left."""
    is_forced = False
    for wait_s in (patience_s, END_S):
        try:
            await asyncio.wait_for(up.process.wait(), wait_s)
        except TimeoutError:
            is_forced = True
            await asyncio.to_thread(_kill_session, up.process.pid, up.uid)
        else:
            await asyncio.wait([up.reading], timeout=END_S)
            if is_forced or (up.process.returncode or 0) < 0:
                await asyncio.to_thread(_kill_session, up.process.pid, up.uid)
            return True
    return False


async def _read(stream: asyncio.StreamReader, said: bytearray) -> None:
    """Read to the end and keep the beginning."""
    while piece := await stream.read(4096):
        said += piece[: SAID_BYTES - len(said)]


def _kill_session(leader: int, uid: int) -> None:
    """Kill what a program started and left: its file systems run in process groups of their own.

    Their session is the program's, and its number is given to nobody else while one of them lives.
    """
    for _ in range(ROUNDS):
        found = [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))  # noqa: PTH208
            if _in_session(pid, leader, uid)
        ]
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def _in_session(pid: int, leader: int, uid: int) -> bool:
    """Whether a process that runs is in a session and is a user's."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        is_over, session = fields[0] in {b"Z", b"X"}, int(fields[3])
        if session == leader and not is_over:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
            users = next(line for line in status.splitlines() if line.startswith("Uid:")).split()
            return int(users[1]) in {uid, os.getuid()}
    return False


def descendants(pid: int) -> list[int]:
    """Return a process's children and theirs."""
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                found += [int(child), *descendants(int(child))]
    return found


def _is_first(pid: int) -> bool:
    """Whether it is the first of a process-id namespace, and runs what is to run there."""
    with suppress(OSError, ValueError):
        if Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() != "cat":
            return False
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
        return len(ids) > 2 and ids[-1] == "1"
    return False


async def end_process(pid: int, started: int) -> None:
    """Kill the first process of a namespace and wait until the kernel has ended them all.

    Raises: BoundaryError("sandbox") after a deadline.
    """
    handle = kill(pid, started)
    if handle is None:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), END_S)
    except TimeoutError:
        raise BoundaryError("sandbox", f"process {pid} did not end by SIGKILL") from None
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def program(name: str) -> str:
    """Return a program's path. Raises: BoundaryError("sandbox"), without retry."""
    found = shutil.which(name)
    if found is None:
        raise BoundaryError("sandbox", f"{name} is not installed", retry=False)
    return found
