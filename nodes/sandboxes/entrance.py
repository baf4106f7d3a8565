"""The way into sandboxes from an asyncio loop: one small process that forks for each call.

Job: hand a request and three pipes to `enter.py serve`, feed and read the pipes, keep deadlines.
Does not know: providers, or what is run.
Invariants: what is read is bounded while it is read, and a program is never blocked by what it
writes. When a call is over, however it ends, what it started is over or has left its process group.
The server has none of this process's environment.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from engine.errors import BoundaryError

from . import enter
from .contract import Finished

KILL_WAIT_S = 10.0  # from SIGKILL to the report of it
SEND_WAIT_S = 10.0  # until the server takes a request
PIECE_BYTES = 1 << 16
REST_BYTES = 1 << 20  # read after the end: no less than a pipe can hold


@dataclass(slots=True)
class _Kept:
    """One stream of output, read as it comes."""

    source: int
    most_bytes: int
    data: bytearray
    cut: bool = False
    is_open: bool = True

    def read(self) -> int:
        """Read one piece; return its length, 0 if there is nothing now or nothing more."""
        try:
            piece = os.read(self.source, PIECE_BYTES)
        except BlockingIOError:
            return 0
        if not piece:
            self._close()
        room = self.most_bytes - len(self.data)
        self.data += piece[:room]
        self.cut = self.cut or len(piece) > room
        return len(piece)

    def read_rest(self) -> None:
        left = REST_BYTES
        while self.is_open and left > 0 and (length := self.read()):
            left -= length
        self._close()

    def _close(self) -> None:
        if self.is_open:
            self.is_open = False
            asyncio.get_running_loop().remove_reader(self.source)
            os.close(self.source)


class _Fed:
    """Standard input, written as it is taken."""

    def __init__(self, sink: int, data: bytes) -> None:
        self._sink, self._left, self._is_open = sink, memoryview(data), True
        asyncio.get_running_loop().add_writer(sink, self._write)

    def _write(self) -> None:
        try:
            self._left = self._left[os.write(self._sink, self._left[:PIECE_BYTES]) :]
        except BlockingIOError:
            return
        except OSError:  # the program reads no more
            self._left = self._left[:0]
        if not self._left:
            self.close()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            asyncio.get_running_loop().remove_writer(self._sink)
            os.close(self._sink)


class Entrance:
    """Runs requests of `enter`; for one event loop."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    async def run(
        self, request: dict[str, Any], stdin: bytes, timeout_s: float, most_bytes: int
    ) -> Finished:
        """Run one request inside, at most so long, keeping so much of each stream.

        Raises: BoundaryError("sandbox") if the sandbox cannot be entered, or if the server or the
        kernel does not answer in time.
        """
        began = time.monotonic()
        ours, theirs = _pipes()
        control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.settimeout(0)
        out, err = (_Kept(source, most_bytes, bytearray()) for source in ours[1:])
        loop = asyncio.get_running_loop()
        for kept in (out, err):
            loop.add_reader(kept.source, kept.read)
        fed = _Fed(ours[0], stdin)
        try:
            try:
                await self._send(request, [*theirs, their_control.fileno()])
            finally:
                their_control.close()
                for descriptor in theirs:
                    os.close(descriptor)
            code, timed_out = await _ended(control, timeout_s)
        finally:
            control.close()
            fed.close()
            out.read_rest()
            err.read_rest()
        seconds = time.monotonic() - began
        told = None if timed_out else code
        return Finished(
            told, bytes(out.data), bytes(err.data), out.cut or err.cut, timed_out, seconds
        )

    async def _send(self, request: dict[str, Any], descriptors: list[int]) -> None:
        text = os.memfd_create("request")
        try:
            with os.fdopen(os.dup(text), "wb") as file:
                file.write(orjson.dumps(request))
            deadline = time.monotonic() + SEND_WAIT_S
            while True:
                try:
                    socket.send_fds(self._open(), [b"r"], [text, *descriptors])
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise BoundaryError("sandbox", "the entrance takes no request") from None
                    await asyncio.sleep(0.005)
                except OSError as wrong:
                    self.close()
                    raise BoundaryError("sandbox", f"the entrance is gone: {wrong}") from wrong
                else:
                    return
        finally:
            os.close(text)

    def _open(self) -> socket.socket:
        if self._server is not None and self._server.poll() is not None:
            self.close()
        if self._requests is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._server = subprocess.Popen(
                    [*enter_command(), "serve"],
                    stdin=theirs.fileno(),
                    env={},
                    start_new_session=True,
                )
            ours.settimeout(0)
            self._requests = ours
        return self._requests

    def close(self) -> None:
        """End the server, and with it what it has started; the next request starts another."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None


def enter_command() -> list[str]:
    """Return the argv of `enter`, without its arguments."""
    return [sys.executable, "-I", "-S", str(Path(enter.__file__).resolve())]


def _pipes() -> tuple[list[int], list[int]]:
    """Return our ends (not blocking) and theirs, of standard input, output and error."""
    pairs = [os.pipe() for _ in range(3)]
    ours = [pairs[0][1], pairs[1][0], pairs[2][0]]
    for descriptor in ours:
        os.set_blocking(descriptor, False)
    return ours, [pairs[0][0], pairs[1][1], pairs[2][1]]


async def _ended(control: socket.socket, timeout_s: float) -> tuple[int, bool]:
    """Return the exit status and whether the program was stopped for its time.

    One task waits for the report all along: a wait that is given up in the moment of the report's
    arrival would take it along.
    """
    reading = asyncio.ensure_future(_report(control))
    try:
        timed_out = not (await asyncio.wait([reading], timeout=timeout_s))[0]
        if timed_out:
            with contextlib.suppress(OSError):
                control.send(b"K")
            if not (await asyncio.wait([reading], timeout=KILL_WAIT_S))[0]:
                why = f"a program did not end {KILL_WAIT_S:g} s after SIGKILL"
                raise BoundaryError("sandbox", why)
    finally:
        reading.cancel()
        await asyncio.wait([reading])  # the socket is closed next, and must be read by nobody
    report = reading.result()
    if report[:1] == b"S":
        return int(report[1:]), timed_out
    raise BoundaryError("sandbox", report[1:].decode("utf-8", "replace") or "the sandbox ended")


async def _report(control: socket.socket) -> bytes:
    """Return the report; b"" if there is none.

    A program that ends by itself while it is being stopped leaves our word unread. The kernel then
    says so before it hands out the report, which is there.
    """
    loop = asyncio.get_running_loop()
    for _ in range(2):
        try:
            return await loop.sock_recv(control, 4096)
        except ConnectionResetError:
            continue
        except OSError:
            break
    return b""
