"""The process that owns the sandboxes of one host: starts, lends, keeps warm, and ends them.

Job: connections, deadlines and tasks around the rules of `holdings`.
Does not know: rollouts beyond their names, or what runs in a sandbox.
Invariants: a sandbox that nobody owns is ended within a second of that being known, and one that
cannot be ended is tried again. At the start everything that an earlier keeper left is ended first.
Everything that this process started ends with it.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import orjson

from engine.errors import BoundaryError
from engine.logs import get_logger
from engine.sockets import private_directory
from engine.typed import Mismatch

from .choice import Maker
from .contract import Limits, Spec
from .holdings import Holdings, Key, clipped, key_of
from .link import ASKED, LINE_BYTES, Asked, Told, line_of
from .records import Record, read_records, remove_tree, write_record
from .watch import Watch

log = get_logger()
TICK_S = 0.5
REFILL_S = 0.02  # first the answer: whoever asked is waiting, and a start blocks for milliseconds
AGAIN_S = 5.0  # before a sandbox that did not end is tried again
AT_ONCE = 8  # starts under way; more of them only wait for each other
STOP_S = 20.0


class Keeper:
    """Serves one Unix socket.

    `other` returns the provider of a name: an earlier keeper may have used another one.
    """

    def __init__(
        self,
        maker: Maker,
        records: Path,
        base: Path,
        most: Limits,
        pool: int,
        images: list[str],
        other: Callable[[str], Maker],
    ) -> None:
        self._maker = maker
        self._other = other
        self._records = records
        self._base = base
        self._most = most
        usual = clipped(Limits(), most)
        keys = [key_of(Spec(image, usual)) for image in images] if pool else []
        self.book = Holdings(pool, keys)
        self._starting: list[Key] = []
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._links = itertools.count(1)
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._pool_fails_until = 0.0
        self._watch = Watch(self.book, self._convict)
        self.counts = {"started": 0, "warm": 0, "ended": 0, "reaped": 0, "failed": 0}

    def figures(self) -> dict[str, float]:
        """Return what is counted, for status."""
        states = {
            "held_now": self.book.count("held"),
            "pinned_now": self.book.count("pinned"),
            "warm_now": self.book.count("warm"),
        }
        every = self.counts | self._watch.counts | states
        return {key: float(value) for key, value in every.items()}

    async def sweep(self) -> None:
        """End what an earlier keeper of this host left behind."""
        left = list(read_records(self._records))
        for record in left:
            log.warning("reaping a sandbox that was left", sandbox=record.name)
            self.counts["reaped"] += 1
            self._end_record(record)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_S)
        for directory in self._base.glob("sb-*"):
            if directory.name not in self._ending:
                await asyncio.to_thread(remove_tree, directory)

    async def close(self) -> None:
        """Let go of everything; remove the common directory if no sandbox is left in it."""
        await self._maker.close()
        if not any(self._base.glob("sb-*")):
            await asyncio.to_thread(remove_tree, self._base)

    async def serve(self, path: Path, over: asyncio.Event, each_tick: Callable[[], None]) -> None:
        """Take connections until `over`, then end every sandbox.

        Raises: NodeFailed if the socket's directory belongs to somebody else; OSError.
        """
        private_directory(path.parent)
        server = await asyncio.start_unix_server(self._connected, str(path), limit=LINE_BYTES)
        watch = self._task(self._watch.run(), "watch")
        try:
            while not over.is_set():
                self._refill()
                self._convict(self.book.expired(time.monotonic()), "its time is up")
                each_tick()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), TICK_S)
        finally:
            server.close()
            watch.cancel()
            await self._leave()

    def disowned(self, rollout_ids: list[str]) -> None:
        """Take the broker's word that rollouts are not pinned here."""
        self._end(self.book.disowned(rollout_ids, time.monotonic()), "its rollout is over")

    async def _leave(self) -> None:
        for writer in self._writers.values():
            writer.close()
        for task in self._tasks:
            if task.get_name().startswith("start"):
                task.cancel()
        self._end(self.book.names(), "the keeper ends")
        while self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=STOP_S)
            if late:
                log.error("sandboxes did not end", names=list(self._ending))
                break
        await self.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = next(self._links)
        self._writers[link] = writer
        try:
            while line := await reader.readline():
                self._asked(ASKED(orjson.loads(line)), link)
        except (OSError, ValueError, Mismatch) as wrong:
            log.warning("a connection is closed", error=str(wrong))
        finally:
            del self._writers[link]
            grace_s = 2 * AGAIN_S  # a result may still be on its way to the broker
            gone = self.book.link_lost(link, time.monotonic() + grace_s)
            self.counts["reaped"] += len(gone)
            self._end(gone, "its worker is gone")
            writer.close()

    def _asked(self, asked: Asked, link: int) -> None:
        now = time.monotonic()
        match asked.what:
            case "start":
                self._task(self._start(asked, link), "start")
            case "find" if asked.owner is not None:
                self._found(asked, link)
            case "pin":
                done = self.book.pin(asked.name, link)
                self._tell(link, Told(asked.number, error="" if done else "it is gone"))
            case "settle":
                self._end(self.book.settle(asked.name, link, now), "a later one is pinned")
            case "stop":
                self._stop(asked, link)

    def _stop(self, asked: Asked, link: int) -> None:
        if self.book.holds(asked.name, link):
            self._end([asked.name], "")
        ending = self._ending.get(asked.name)
        if not asked.number:
            return
        if ending is None:
            self._tell(link, Told(asked.number))
        else:
            ending.add_done_callback(lambda _: self._tell(link, Told(asked.number)))

    def _found(self, asked: Asked, link: int) -> None:
        assert asked.owner is not None
        rollout_id = asked.owner.rollout_id
        record = self.book.find(rollout_id)
        if record is None or not record.is_alive():
            own = self.book.why_ended(rollout_id) if record is None else ""
            why = own or f"rollout {rollout_id} has no sandbox on this host any more"
            self._tell(link, Told(asked.number, error=why, gone=not own))
        else:
            self._tell(link, Told(asked.number, record))

    async def _start(self, asked: Asked, link: int) -> None:
        spec, owner = asked.spec, asked.owner
        if spec is None or owner is None:
            self._tell(link, Told(asked.number, error="start needs spec and owner", retry=False))
            return
        spec = Spec(spec.image, clipped(spec.limits, self._most), spec.environment, spec.workdir)
        record = self._warm(asked, spec, link)
        try:
            if record is None:
                async with self._slots:
                    made = (await self._maker.start(spec, owner)).record
                record = self.book.hold(made, spec, owner, link, time.monotonic())
                self.counts["started"] += 1
            write_record(self._records, record)
        except (BoundaryError, OSError) as wrong:
            self.counts["failed"] += 1
            self._end([record.name] if record else [], "it cannot be written down")
            retry = wrong.retry if isinstance(wrong, BoundaryError) else True
            self._tell(link, Told(asked.number, error=str(wrong) or "failed", retry=retry))
            return
        if link in self._writers:
            self._tell(link, Told(asked.number, record))
        else:
            self._end([record.name], "its worker is gone")

    def _warm(self, asked: Asked, spec: Spec, link: int) -> Record | None:
        assert asked.owner is not None
        while record := self.book.take(spec, asked.owner, link, time.monotonic()):
            if record.is_alive():
                self.counts["warm"] += 1
                asyncio.get_running_loop().call_later(REFILL_S, self._refill)
                return record
            self._end([record.name], "it died in the pool")
        return None

    def _refill(self) -> None:
        if time.monotonic() < self._pool_fails_until:
            return
        for key in self.book.missing(self._starting):
            self._starting.append(key)
            self._task(self._start_warm(key), "start-warm")

    async def _start_warm(self, key: Key) -> None:
        image, disk_bytes, network = key
        spec = Spec(image, Limits(disk_bytes=disk_bytes, network=network))
        try:
            async with self._slots:
                made = (await self._maker.start(spec, None)).record
            self.book.add_warm(made, key, time.monotonic())
        except (BoundaryError, OSError) as wrong:
            log.warning("the pool cannot be filled", image=image, error=str(wrong))
            self._pool_fails_until = time.monotonic() + AGAIN_S
        finally:
            self._starting.remove(key)

    def _tell(self, link: int, told: Told) -> None:
        writer = self._writers.get(link)
        if writer is not None and not writer.is_closing():
            writer.write(line_of(told))

    def _end(self, names: Iterable[str], why: str) -> None:
        for name in list(names):
            record = self.book.get(name)
            self.book.forget(name)
            if record is not None:
                if why:
                    log.info("sandbox ended", sandbox=name, why=why, owner=record.owner)
                self._end_record(record)

    def _convict(self, names: Iterable[str], why: str) -> None:
        """End sandboxes for what their rollouts did; who asks for one later is told."""
        for name in list(names):
            self.book.note_end(name, f"sandbox ended: {why}")
            self._end([name], why)

    def _end_record(self, record: Record) -> None:
        self._ending[record.name] = self._task(self._remove(record), "end")

    async def _remove(self, record: Record) -> None:
        maker = self._maker if record.provider == self._maker.name else self._other(record.provider)
        while True:
            try:
                await maker.remove(record)
            except (BoundaryError, OSError) as wrong:
                log.warning("a sandbox does not end", sandbox=record.name, error=str(wrong))
                await asyncio.sleep(AGAIN_S)
            else:
                self.counts["ended"] += 1
                del self._ending[record.name]
                return

    def _task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task failed", task=task.get_name(), exc_info=task.exception())
