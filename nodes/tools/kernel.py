"""One IPython kernel in a sandbox, spoken to over Unix sockets.

    execute_request ->  shell    -> execute_reply: how it ended
                        iopub    -> busy, stream, display_data, execute_result, error, idle
    interrupt_request -> control

Job: start the kernel, run code, interrupt it, notice its death.
Does not know: models or schemas.
Invariants: the kernel, and whatever it sends, is in the hands of code that a model wrote: messages
that cannot be read are dropped, their size is bounded, and every wait has a deadline. Both channels
are read all the time; what comes between two calls is part of the next one's output.
"""

import asyncio
import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
import zmq
import zmq.asyncio
from jupyter_client.session import Session

from engine.errors import BoundaryError

from ..sandboxes.contract import Sandbox
from .child import Child
from .output import Kept
from .rich import published
from .shell import write_new

START_S = 90.0  # until the kernel answers for the first time, or has died
ASK_AGAIN_S = 0.1  # while it starts: its sockets are not there yet
GRACE_S = 5.0  # after an interrupt
IDLE_S = 2.0  # from the reply to the last output
MESSAGE_BYTES = 32 * 1024 * 1024  # of one message; a longer one breaks the connection
SOCKET_PATH_BYTES = 107  # the system's limit
CHANNELS = {"shell": zmq.DEALER, "iopub": zmq.SUB, "control": zmq.DEALER}
PORTS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}
OPTIONS = ("--HistoryManager.enabled=False",)

Ending = Literal["", "interrupted", "killed", "died"]


@dataclass(frozen=True, slots=True)
class Executed:
    """How a piece of code ended.

    error: the name of what it raised, or empty. ending: empty if it ended by itself;
    `interrupted`: its time was up, and the kernel lives; `killed`: its time was up, and the kernel
    had to go; `died`: the kernel ended by itself. is_whole: no output is missing.
    """

    output: str
    error: str
    ending: Ending
    is_whole: bool
    seconds: float


class Kernel:
    """A persistent kernel; `await restart()` before the first code."""

    def __init__(self, sandbox: Sandbox, python: Sequence[str] = ("python3",)) -> None:
        self._sandbox = sandbox
        self._python = tuple(python)
        self._loop = asyncio.get_running_loop()
        self._context: zmq.asyncio.Context | None = None
        self._sockets: dict[str, zmq.asyncio.Socket] = {}
        self._readers: list[asyncio.Task[None]] = []
        self._child: Child | None = None
        self._name = ""
        self._is_busy = False
        self._forget()

    def _forget(self) -> None:
        self._session = Session(key=secrets.token_hex(32).encode(), username="agent")
        self._kept = Kept()
        self._asked: set[str] = set()
        self._idle: asyncio.Future[Any] = self._loop.create_future()
        self._reply: asyncio.Future[Any] = self._loop.create_future()

    @property
    def is_ready(self) -> bool:
        """Whether the kernel can take code."""
        return self._child is not None and self._child.is_alive and not self._is_busy

    async def run(self, code: str, timeout_s: float) -> Executed:
        """Run code; after `timeout_s` seconds it is interrupted, then the kernel is killed.

        After `killed` and `died`, and if the caller was cancelled, it has to be restarted.

        Raises: BoundaryError("sandbox") if the kernel is not ready.
        """
        if not self.is_ready:
            raise BoundaryError(
                "sandbox", f"{self._name}: the kernel is gone, and was not restarted"
            )
        began = time.monotonic()
        self._is_busy = True
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,  # or what comes right behind an error is aborted unseen
        }
        await self._ask("execute_request", content)
        ending = await self._ending(timeout_s)
        if not ending and _asks_to_exit(self._reply.result()):
            ending = "died"
        is_whole = self._idle.done()
        kept, self._kept = self._kept, Kept()
        self._is_busy = ending in {"killed", "died"}
        reply = self._reply.result() if self._reply.done() else {}
        error = str(reply.get("ename", "")) if reply.get("status") == "error" else ""
        return Executed(kept.text(), error, ending, is_whole, time.monotonic() - began)

    async def restart(self) -> None:
        """Replace the kernel by a new one: nothing of its state is kept.

        Raises: BoundaryError("sandbox") if the new one does not answer within START_S.
        """
        await self.close()
        self._forget()
        self._name = f"k{secrets.token_hex(4)}"
        self._connect(self._launch())
        self._is_busy = True
        deadline = time.monotonic() + START_S
        while not (self._idle.done() and self._reply.done()):
            if time.monotonic() > deadline or not self.is_alive:
                await self.close()
                raise BoundaryError("sandbox", f"no kernel: {await self._why()}")
            asked = {*self._asked}
            await self._ask("kernel_info_request", {})
            self._asked |= asked  # an answer to any of them will do
            await asyncio.wait({self._idle, self._reply}, timeout=ASK_AGAIN_S)
        self._kept = Kept()
        self._is_busy = False

    @property
    def is_alive(self) -> bool:
        """Whether the kernel's process has not ended."""
        return self._child is not None and self._child.is_alive

    async def close(self) -> None:
        """End the kernel; idempotent.

        Raises: BoundaryError("sandbox") if its process does not die within START_S.
        """
        if not self._name:
            return  # it was never started
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._readers.clear()
        for socket in self._sockets.values():
            socket.close(linger=0)
        self._sockets.clear()
        if self._context is not None:
            self._context.term()
            self._context = None
        child, self._child = self._child, None
        if child is not None and await child.kill(group=True, within_s=START_S) is None:
            raise BoundaryError("sandbox", f"{self._name}: process {child.pid} does not die")
        for number in range(6):
            with contextlib.suppress(OSError):  # the sandbox may have put anything in its place
                (self._sandbox.shared_dir / f"{self._name}-{number}").unlink()

    def _launch(self) -> dict[str, str]:
        """Start the process; return the endpoints of its channels."""
        shared = self._sandbox.shared_dir
        longest = len(os.fsencode(shared / f"{self._name}-1"))
        if longest > SOCKET_PATH_BYTES:
            why = f"the path of a kernel's socket is {longest} bytes long; give run_dir a short one"
            raise BoundaryError("sandbox", why, retry=False)
        inside = f"{self._sandbox.shared_inside}/{self._name}"
        about = {
            "transport": "ipc",
            "ip": inside,
            "key": self._session.key.decode(),
            "signature_scheme": "hmac-sha256",
            **PORTS,
        }
        write_new(shared / f"{self._name}-0", orjson.dumps(about).decode())
        command = (*self._python, "-m", "ipykernel_launcher", "-f", f"{inside}-0", *OPTIONS)
        try:
            process = subprocess.Popen(
                self._sandbox.inside(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as wrong:
            raise BoundaryError("sandbox", f"no kernel: {wrong}") from wrong
        self._child = Child(process.pid)
        process.returncode = 0  # the child is reaped by pidfd, not by Popen
        return {name: f"ipc://{shared}/{self._name}-{PORTS[f'{name}_port']}" for name in CHANNELS}

    def _connect(self, endpoints: dict[str, str]) -> None:
        self._context = zmq.asyncio.Context()
        for name, kind in CHANNELS.items():
            socket = self._context.socket(kind)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES)
            socket.setsockopt(zmq.RECONNECT_IVL, 20)
            if kind == zmq.SUB:
                socket.setsockopt(zmq.SUBSCRIBE, b"")
            else:
                socket.setsockopt(zmq.IDENTITY, self._session.bsession)
            socket.connect(endpoints[name])
            self._sockets[name] = socket
        self._readers = [
            asyncio.create_task(self._listen(self._sockets[name])) for name in ("shell", "iopub")
        ]

    async def _ask(self, kind: str, content: dict[str, Any], channel: str = "shell") -> None:
        message = self._session.msg(kind, content)
        if channel == "shell":
            self._asked = {message["msg_id"]}
            self._idle, self._reply = self._loop.create_future(), self._loop.create_future()
        frames = self._session.serialize(message)
        with contextlib.suppress(zmq.Again):  # a kernel that reads nothing is over its deadline
            await self._sockets[channel].send_multipart(frames, zmq.DONTWAIT)

    async def _listen(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            self._take(await socket.recv_multipart())

    def _take(self, frames: list[bytes]) -> None:
        try:
            _, parts = self._session.feed_identities(frames)
            message = self._session.deserialize(parts)
            kind, content = str(message["msg_type"]), message["content"]
            parent = message["parent_header"].get("msg_id", "")
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # not a message: the code inside can write anything
        is_mine = parent in self._asked
        if kind == "status":
            if is_mine and content.get("execution_state") == "idle" and not self._idle.done():
                self._idle.set_result(None)
        elif kind in {"execute_reply", "kernel_info_reply"}:
            if is_mine and isinstance(content, dict) and not self._reply.done():
                self._reply.set_result(content)
        else:
            self._kept.add(published(kind, content).encode("utf-8", "replace"))

    async def _ending(self, timeout_s: float) -> Ending:
        if await self._over(timeout_s):
            return "" if self._reply.done() else "died"
        await self._ask("interrupt_request", {}, "control")
        if await self._over(GRACE_S):
            return "interrupted" if self._reply.done() else "died"
        return "killed"

    async def _over(self, seconds: float) -> bool:
        assert self._child is not None
        dead: asyncio.Future[Any] = self._child.ended
        await asyncio.wait({self._reply, dead}, timeout=seconds, return_when="FIRST_COMPLETED")
        if self._reply.done():
            await asyncio.wait({self._idle, dead}, timeout=IDLE_S, return_when="FIRST_COMPLETED")
        return self._reply.done() or dead.done()

    async def _why(self) -> str:
        """Return what the sandbox says of its kernel."""
        version = (*self._python, "-m", "ipykernel_launcher", "--version")
        said = await self._sandbox.exec(version, timeout_s=START_S)
        if said.exit_code == 0:
            return f"no answer within {START_S:g} s"
        return (said.stderr or said.stdout).decode("utf-8", "replace").strip()[-500:]


def _asks_to_exit(reply: dict[str, Any]) -> bool:
    """Whether the code called `exit()`, which leaves it to us to end the kernel."""
    asked = reply.get("payload")
    return isinstance(asked, list) and any(
        isinstance(each, dict) and each.get("source") == "ask_exit" for each in asked
    )
