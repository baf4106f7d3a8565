r"""One bash on a pseudo-terminal: commands go in, output and exit status come out.

    _rollmq_n=17; read the file; eval its text </dev/null; print ESC _ nonce ; status ESC \\

A command comes by a file, because a terminal cuts lines at 4,096 bytes. Its end is a marker on the
terminal itself, behind all of its output: a channel of its own would tell of the end while the last
output is still on its way. The marker carries 128 random bits made for this one command, which the
shell alone has read while the command runs: what a program prints is never taken for it. The prompt
carries the command's number, so that a shell that gave up a line (a signal, an unset variable) is
asked for its status at once.

Job: run commands one after the other in a shell that keeps its state, and never wait without a
deadline.
Does not know: models, schemas, or what kind of sandbox this is.
Invariants: the end of a command and the end of the process are events, not polls. A command reads
from /dev/null. After `run` the shell waits for the next command, or the answer says that it is
gone. Memory is bounded, whatever is written. Bytes that come between commands are part of the next
command's output.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import shlex
import signal
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ptyprocess import PtyProcess

from engine.errors import BoundaryError

from ..sandboxes.contract import Sandbox
from .child import Child
from .output import Kept, MarkedOutput

START_S = 60.0  # until a shell answers for the first time, or has died
GRACE_S = 1.0  # after each signal
LAST_WORDS_S = 0.1  # until a shell's terminal closes; what it left behind may hold it open
LOOK_AGAIN_S = 1.0  # first look whether the shell waits though neither marker nor prompt was seen
KILLS = 5  # of a foreground group, before the shell is replaced
READ_BYTES = 65_536
READS = 64  # before the loop has its turn
TIOCSIG = 0x40045436  # asm-generic/ioctls.h; the module termios lacks it
SHELL = ("bash", "--noprofile", "--norc", "--noediting", "-i")
SETUP = (
    "PS2= PROMPT_COMMAND= HISTFILE=; set +o history +H; "
    "export TERM=dumb PAGER=cat GIT_PAGER=cat MANPAGER=cat GIT_TERMINAL_PROMPT=0; "
    "_rollmq=0; _rollmq_n=0; _rollmq_s() { return $_rollmq; }; "
    r"PS1=$'\033_p${_rollmq_n}\033\\\\'; "
)
COMMAND = (
    "\n{ _rollmq_n=%d; IFS= read -r -d '' _rollmq_c <%s; } 2>/dev/null; "
    '_rollmq_s && :; eval "$_rollmq_c" </dev/null; '
)
MARK = (
    "{ _rollmq=$?; builtin printf '\\033_%%s;%%s\\033\\\\' %s $_rollmq >/dev/tty; } 2>/dev/null\n"
)

Ending = Literal["", "interrupted", "killed", "replaced", "exited"]


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended.

    exit_code: its status, None if it has none. ending: empty if it ended by itself; `interrupted`
    and `killed`: its time was up, and the shell lives; `replaced`: its time was up, and the shell
    did not come back; `exited`: the shell ended. After the last two it has to be restarted.
    """

    output: str
    exit_code: int | None
    ending: Ending
    seconds: float


class Shell:
    """A persistent bash in a sandbox; `await restart()` before the first command."""

    def __init__(self, sandbox: Sandbox, workdir: str = "") -> None:
        self._sandbox = sandbox
        self._workdir = workdir
        self._loop = asyncio.get_running_loop()
        self._name = f"bash-{secrets.token_hex(4)}"
        self._process: PtyProcess | None = None
        self._child: Child | None = None
        self._fd = -1
        self._group = 0  # of the shell itself, by the name that this process has for it
        self._modes: list[Any] = []
        self._number = 0
        self._forget()

    def _forget(self) -> None:
        self._between = Kept()
        self._last = b""
        self._output: MarkedOutput | None = None
        self._marked: asyncio.Future[Any] = self._loop.create_future()
        self._closed: asyncio.Future[Any] = self._loop.create_future()

    @property
    def is_ready(self) -> bool:
        """Whether the shell can take a command."""
        return self._child is not None and self._child.is_alive and self._output is None

    async def run(self, command: str, timeout_s: float) -> Ran:
        """Run a command; what it writes is cut in the middle if it is long.

        After `timeout_s` seconds it is interrupted, then killed, then the shell is given up. If
        the caller is cancelled, the shell has to be restarted.

        Raises: BoundaryError("sandbox") if the shell is not ready; OSError if the command cannot be
        handed over (the disk is full).
        """
        if not self.is_ready:
            raise BoundaryError(
                "sandbox", f"{self._name}: the shell is gone, and was not restarted"
            )
        began = time.monotonic()
        name = f"{self._name}-{secrets.token_hex(8)}"
        write_new(self._sandbox.shared_dir / name, command)
        try:
            inside = f"{self._sandbox.shared_inside}/{name}"
            output = self._begin(COMMAND % (self._number + 1, shlex.quote(inside)))
            ending = await self._ending(timeout_s)
        finally:
            with contextlib.suppress(OSError):  # the sandbox may have put anything in its place
                (self._sandbox.shared_dir / name).unlink()
        output.flush()
        code = self._marked.result() if self._marked.done() else None
        if ending == "exited" and self._child is not None:
            code = self._child.ended.result()
        else:
            self._output = None if ending != "replaced" else output
        return Ran(output.kept.text(), code, ending, time.monotonic() - began)

    async def restart(self) -> None:
        """Replace the shell by a new one: nothing of its state is kept.

        Raises: BoundaryError("sandbox") if the new one does not answer within START_S.
        """
        await self.close()
        self._forget()
        argv = self._sandbox.terminal(SHELL)
        spawning = asyncio.ensure_future(asyncio.to_thread(PtyProcess.spawn, argv, echo=False))
        try:
            process = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            spawning.add_done_callback(_discard)
            raise
        except (OSError, ValueError) as wrong:
            raise BoundaryError("sandbox", f"no shell: {argv[0]}: {wrong}") from wrong
        self._process, self._fd, self._child = process, process.fd, Child(process.pid)
        os.set_blocking(self._fd, False)
        modes = termios.tcgetattr(self._fd)
        modes[1] &= ~termios.OPOST
        modes[3] = (modes[3] | termios.ICANON | termios.ISIG) & ~termios.ECHO
        self._modes = modes
        self._loop.add_reader(self._fd, self._read)
        enter = f"cd {shlex.quote(self._workdir)}; " if self._workdir else ""
        output = self._begin(SETUP + enter)
        if not await self._over(START_S) or not self._marked.done():
            output.flush()
            why = output.kept.text().strip()[-500:] or f"no answer within {START_S:g} s"
            await self.close()
            raise BoundaryError("sandbox", f"no shell by {argv[0]}: {why}")
        self._group = self._foreground()
        self._output = None
        self._between = Kept()

    async def close(self) -> None:
        """End the shell and hang up on what it left in the foreground; idempotent.

        Raises: BoundaryError("sandbox") if its process does not die within START_S.
        """
        process, self._process = self._process, None
        child, self._child = self._child, None
        if process is not None:
            self._loop.remove_reader(self._fd)
            process.fileobj.close()
            process.closed = True  # or it would look for the process again, with sleeps
            self._fd = -1
        if child is not None and await child.kill(group=True, within_s=START_S) is None:
            raise BoundaryError("sandbox", f"{self._name}: process {child.pid} does not die")

    def _begin(self, line: str) -> MarkedOutput:
        """Give the shell a line, and a marker to print behind it."""
        self._number += 1
        self._nonce = secrets.token_hex(16)
        self._output = MarkedOutput(self._nonce, self._between)
        self._marked = self._loop.create_future()
        self._between = Kept()
        self._send(line + MARK % self._nonce)
        return self._output

    def _send(self, line: str) -> None:
        with contextlib.suppress(OSError):  # of a shell that is gone: its end says so
            termios.tcsetattr(self._fd, termios.TCSANOW, self._modes)
            os.write(self._fd, line.encode())

    def _read(self) -> None:
        for _ in range(READS):
            try:
                data = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                return
            except OSError:  # EIO: nobody has the other side open
                data = b""
            if not data:
                self._loop.remove_reader(self._fd)
                self._closed.set_result(None)
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        if self._output is None or self._marked.done():
            self._between.add(data)
            return
        ended = self._output.feed(data)
        if ended is not None:
            self._marked.set_result(ended.status)
            self._between.add(ended.rest)
            return
        prompt = b"\x1b_p%d\x1b\\" % self._number
        if prompt in self._last + data:
            self._last = b""
            self._send(MARK % self._nonce)
        else:
            self._last = data[-len(prompt) :]

    async def _over(self, seconds: float) -> bool:
        """Wait until the command or the shell has ended; return whether one has."""
        assert self._child is not None
        ended: asyncio.Future[Any] = self._child.ended
        await asyncio.wait(
            {self._marked, ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if ended.done() and not self._marked.done():
            await asyncio.wait(  # for its last words
                {self._closed, self._marked},
                timeout=LAST_WORDS_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
        return ended.done() or self._marked.done()

    async def _ending(self, timeout_s: float) -> Ending:
        look_again = self._loop.call_later(LOOK_AGAIN_S, self._look_again, LOOK_AGAIN_S)
        self._looking = look_again
        try:
            if await self._over(timeout_s):
                return self._by_itself("")
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._fd, TIOCSIG, signal.SIGINT)
            if await self._over(GRACE_S):
                return self._by_itself("interrupted")
            for _ in range(KILLS):
                if not self._kill_foreground():
                    break
                if await self._over(GRACE_S):
                    return self._by_itself("killed")
            return "replaced"
        finally:
            self._looking.cancel()

    def _by_itself(self, ending: Ending) -> Ending:
        return ending if self._marked.done() else "exited"

    def _look_again(self, waited_s: float) -> None:
        """Ask for the status if the shell is in the foreground: it may wait for a line."""
        if self._foreground() == self._group:
            self._send(MARK % self._nonce)
        self._looking = self._loop.call_later(3 * waited_s, self._look_again, 3 * waited_s)

    def _foreground(self) -> int:
        try:
            return os.tcgetpgrp(self._fd)
        except OSError:
            return 0

    def _kill_foreground(self) -> bool:
        """Kill what runs in the foreground; return False if that is the shell, or out of reach."""
        group = self._foreground()
        if group <= 1 or group == self._group:
            return False
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return True


def _discard(spawned: "asyncio.Future[Any]") -> None:
    """End a process that nobody waited for."""
    if spawned.exception() is None:
        process = spawned.result()
        process.fileobj.close()
        process.closed = True
        Child(process.pid).signal(signal.SIGKILL, group=True)  # and is reaped by the loop


def write_new(path: Path, text: str) -> None:
    """Write a file where there is none; the directory is the sandbox's, and no link is followed.

    Raises: OSError if something is there already, or the disk is full.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(text.encode("utf-8", "replace").replace(b"\0", b""))
