"""Looks several times a second what sandboxes take, and ends what is over its bound.

Job: measure beside the keeper's loop, and kill processes or have sandboxes ended.
Does not know: how anything is measured, or who owns a sandbox.
Invariants: looking takes at most a twentieth of a processor core, so the more there is to look at,
the longer the pauses. Whoever is ended is logged with what it took and what it might.

The memory controller of control groups would be exact and at once. It is not used: the second
version gives a group to whoever runs in it only where an administrator has arranged that.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable

from engine.logs import get_logger

from .holdings import Holdings
from .records import Record, kill
from .usage import Use, measure, to_end, tree_bytes

log = get_logger()
PAUSE_S = 0.1
SHARE = 20.0  # the pause is at least so many times as long as the last look
TREES_S = 2.0  # shared directories are looked at so often
MECHANISM = "looked at from outside, every 0.1 s or more"


class Watch:
    """Watches the sandboxes in a book that are lent; `convict` ends some, for a reason."""

    def __init__(self, book: Holdings, convict: Callable[[Iterable[str], str], None]) -> None:
        self._book = book
        self._convict = convict
        self.counts = {"over_memory": 0, "over_disk": 0}

    async def run(self) -> None:
        """Look until cancelled."""
        log.info("memory of whole sandboxes", how=MECHANISM)
        trees_at = 0.0
        while True:
            began = time.monotonic()
            try:
                await self._memory(self._book.lent())
                if began >= trees_at:
                    await self._trees(self._book.lent())
                    trees_at = began + TREES_S
            except OSError:
                log.exception("sandboxes cannot be watched")
            await asyncio.sleep(max(PAUSE_S, SHARE * (time.monotonic() - began)))

    async def _memory(self, records: list[Record]) -> None:
        if not records:
            return
        uses = await asyncio.to_thread(measure, records)
        for record in records:
            bound = record.limits.total_bytes
            use = uses.get(record.name)
            if use is not None and use.memory_bytes > bound:
                self._over(record, use, bound)

    def _over(self, record: Record, use: Use, bound: int) -> None:
        self.counts["over_memory"] += 1
        chosen = to_end(use, bound)
        for part in chosen:
            if (handle := kill(part.pid, part.started)) is not None:
                os.close(handle)
        log.warning(
            "a sandbox takes more memory than it may",
            sandbox=record.name,
            owner=record.owner,
            bytes=use.memory_bytes,
            total_bytes=bound,
            processes_ended=len(chosen),
        )
        if use.files_bytes > bound:
            why = f"its files in memory take {use.files_bytes} bytes of the {bound} that it may"
            self._convict([record.name], why)

    async def _trees(self, records: list[Record]) -> None:
        for record in records:
            size = await asyncio.to_thread(tree_bytes, record.shared_dir)
            bound = record.limits.disk_bytes
            if size is None or size > bound:
                self.counts["over_disk"] += 1
                held = "too many files" if size is None else f"{size} bytes"
                why = f"its shared directory holds {held}; it may hold {bound} bytes"
                self._convict([record.name], why)
