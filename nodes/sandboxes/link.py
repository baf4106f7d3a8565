"""How a stage's host asks its keeper for sandboxes: JSON lines over a Unix socket.

Job: the host's end of the connection, what is said on it, and one attempt's sandboxes.
Does not know: who else is connected, pools, or how sandboxes are made.
Invariants: everything an attempt opened is given back on every path, or pinned before its result
leaves. The connection is the claim: when this process is gone, so is its claim, and the keeper ends
what it held. Every wait has a deadline.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from engine.errors import BoundaryError
from engine.logs import get_logger
from engine.typed import Mismatch, compile_decoder

from .contract import Owner, Sandbox, Spec
from .entrance import Entrance
from .inside import Inside
from .records import Record

log = get_logger()
ANSWER_S = 120.0  # a cold start behind many others
LINE_BYTES = 1 << 20
REACH_S = 20.0  # for a keeper that is being started again
POLL_S = 0.05
LOST = "the keeper of sandboxes is gone; it will be started again"
REPEATED = frozenset({"start", "find"})  # asked again of the next keeper: the last one's are over


class SandboxGone(BoundaryError):  # noqa: N818 - reads as the event that it reports
    """What the rollout had pinned is gone, and not by anything that it did."""

    def __init__(self, message: str) -> None:
        super().__init__("sandbox", message)


@dataclass(frozen=True, slots=True)
class Asked:
    """Host to keeper. `what` is start, find, pin, settle or stop; number 0 asks for no answer."""

    number: int
    what: str
    name: str = ""
    spec: Spec | None = None
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """Keeper to host: a record, or why there is none (boundary "sandbox").

    gone: there was one, and it was not ended for anything that its rollout did.
    """

    number: int
    record: Record | None = None
    error: str = ""
    retry: bool = True
    gone: bool = False


ASKED: Callable[[Any], Asked] = compile_decoder(Asked)
TOLD: Callable[[Any], Told] = compile_decoder(Told)


def line_of(message: Asked | Told) -> bytes:
    """Return a message as a line."""
    return orjson.dumps(asdict(message)) + b"\n"


class Link:
    """The connection to the keeper; made when it is first needed, and again when it was lost."""

    def __init__(self, path: Path, reach_s: float = REACH_S) -> None:
        self._path = path
        self._reach_s = reach_s
        self._entrance = Entrance()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Told]] = {}
        self._unwanted: set[int] = set()  # starts whose caller did not wait for the answer
        self._connecting = asyncio.Lock()
        self._number = 0

    async def start(self, spec: Spec, owner: Owner) -> Inside:
        """Return a sandbox of one's own. Raises: BoundaryError("sandbox")."""
        return self._inside(await self._ask("start", spec=spec, owner=owner))

    async def find(self, owner: Owner) -> Inside:
        """Return the sandbox that an earlier stage has pinned.

        Raises: SandboxGone, a BoundaryError("sandbox"), if it is gone without its doing.
        """
        return self._inside(await self._ask("find", owner=owner))

    async def pin(self, name: str) -> None:
        """Leave a sandbox to its rollout's later stages. Raises: BoundaryError("sandbox")."""
        await self._ask("pin", name=name)

    def settle(self, name: str) -> None:
        """Say that the result that pinned it is settled."""
        self._tell(Asked(0, "settle", name))

    async def stop(self, name: str) -> None:
        """Give a sandbox back and wait until nothing is left of it. Raises: BoundaryError."""
        await self._ask("stop", name=name)

    def give_back(self, name: str) -> None:
        """Give a sandbox back; the keeper ends it soon."""
        self._tell(Asked(0, "stop", name))

    async def close(self) -> None:
        """Close the connection: what was held goes with it."""
        self._entrance.close()
        if self._writer is not None:
            self._writer.close()
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading

    def _inside(self, told: Told) -> Inside:
        record = told.record
        assert record is not None

        return Inside(record, self._entrance, lambda: self.stop(record.name))

    async def _ask(self, what: str, **more: Any) -> Told:
        told = await self._ask_once(what, **more)
        if told.error == LOST and what in REPEATED:
            told = await self._ask_once(what, **more)
        if told.gone:
            raise SandboxGone(told.error)
        if told.error:
            raise BoundaryError("sandbox", told.error, retry=told.retry)
        return told

    async def _ask_once(self, what: str, **more: Any) -> Told:
        await self._connect()
        self._number += 1
        number = self._number
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._tell(Asked(number, what, **more))
            told: Told = await asyncio.wait_for(answer, ANSWER_S)
        except TimeoutError:
            why = f"no answer to {what!r} from the keeper of sandboxes in {ANSWER_S:g} s"
            raise BoundaryError("sandbox", why) from None
        finally:
            self._waiting.pop(number, None)
            if what == "start" and (answer.cancelled() or not answer.done()):
                self._unwanted.add(number)
        return told

    def _tell(self, message: Asked) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(line_of(message))

    async def _connect(self) -> None:
        async with self._connecting:
            if self._writer is not None and not self._writer.is_closing():
                return
            reader, self._writer = await self._reach()
            self._reading = asyncio.create_task(self._read(reader, self._writer))

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        deadline = time.monotonic() + self._reach_s
        while True:
            try:
                return await asyncio.open_unix_connection(str(self._path), limit=LINE_BYTES)
            except OSError as wrong:
                if time.monotonic() > deadline:
                    why = f"the keeper of sandboxes cannot be reached: {wrong}"
                    raise BoundaryError("sandbox", why) from wrong
            await asyncio.sleep(POLL_S)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self._hear(TOLD(orjson.loads(line)))
        except (OSError, ValueError, Mismatch) as wrong:
            log.warning("the keeper's connection failed", error=str(wrong))
        finally:
            writer.close()
            self._unwanted.clear()
            for number, waiting in self._waiting.items():
                if not waiting.done():
                    waiting.set_result(Told(number, error=LOST))

    def _hear(self, told: Told) -> None:
        waiting = self._waiting.get(told.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(told)
        elif told.number in self._unwanted:
            self._unwanted.discard(told.number)
            if told.record is not None:
                self.give_back(told.record.name)


class AttemptSandboxes:
    """What one attempt has opened, to be given back or pinned."""

    def __init__(self, link: Link | None, owner: Owner) -> None:
        self._link = link
        self._owner = owner
        self._opened: list[str] = []
        self._uses_pinned = False
        self.pinned: list[str] = []

    async def open(self, spec: Spec | None) -> Sandbox:
        """Start one, or without a spec return the pinned one. Raises: BoundaryError("sandbox")."""
        if self._link is None:
            why = "the topology has no `sandboxes`"
            raise BoundaryError("sandbox", why, retry=False)
        if spec is None:
            self._uses_pinned = True
            return await self._link.find(self._owner)
        sandbox = await self._link.start(spec, self._owner)
        self._opened.append(sandbox.name)
        return sandbox

    async def pin(self) -> None:
        """Leave all to the rollout. Raises: BoundaryError("sandbox")."""
        for name in list(self._opened):
            assert self._link is not None
            await self._link.pin(name)
            self._opened.remove(name)
            self.pinned.append(name)

    async def is_lost(self) -> bool:
        """Whether the attempt used what was pinned, and that is gone without its doing."""
        if self._link is None or not self._uses_pinned:
            return False
        try:
            await self._link.find(self._owner)
        except SandboxGone:
            return True
        except BoundaryError:
            return False
        return False

    def settle(self) -> None:
        """Say that the attempt's result is settled."""
        for name in self.pinned:
            assert self._link is not None
            self._link.settle(name)

    def give_back(self) -> None:
        """End what was neither pinned nor given back."""
        for name in self._opened:
            assert self._link is not None
            self._link.give_back(name)
        self._opened.clear()
