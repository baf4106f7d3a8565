"""The body frames of rollouts: in memory while there is room, on disk otherwise.

Kept by order: a submission's task under its own, a rollout's stage outputs under the rollout's.
A part that is durable may be dropped from memory, oldest first, and is read back when it is needed,
so a slow trainer costs disk and not memory. This module knows no socket and reads no frame.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.journal import Journal, NullJournal
from engine.journal.segments import Location
from engine.records import Buffer
from engine.wire import size_bytes, split


@dataclass(slots=True, eq=False)
class Part:
    """What one stage left: described frames, in memory or at a place on disk."""

    order: int
    buffers: tuple[Buffer, ...]
    frames: Sequence[Any] | None
    location: Location | None
    position: int
    size: int


class Bodies:
    """Every part that the broker holds."""

    def __init__(self, journal: Journal | NullJournal, memory_bytes: int) -> None:
        self._journal = journal
        self._memory_bytes = memory_bytes
        self._parts: dict[int, list[Part]] = {}
        self._in_memory: OrderedDict[int, Part] = OrderedDict()
        self.resident_bytes = 0
        self.reads = 0

    def hold(self, memory_bytes: int) -> None:
        """Keep so many bytes in memory from now on."""
        self._memory_bytes = memory_bytes
        self._spill()

    def add(
        self,
        order: int,
        buffers: tuple[Buffer, ...],
        frames: Sequence[Any],
        location: Location | None,
        position: int,
    ) -> None:
        """Take the frames of one message; they become durable at `position`."""
        part = Part(order, buffers, frames, location, position, size_bytes(frames))
        self._parts.setdefault(order, []).append(part)
        self._remember(part)
        self._spill()

    def restore(self, order: int, buffers: tuple[Buffer, ...], location: Location) -> None:
        """Take a part that lies on disk since before this process started."""
        size = sum(buffer.size_bytes for buffer in buffers)
        self._parts.setdefault(order, []).append(Part(order, buffers, None, location, 0, size))

    def collect(self, orders: Iterable[int]) -> tuple[tuple[Buffer, ...], list[Any]]:
        """Return the frames under these orders; a later one replaces an earlier one of its name.

        Raises: JournalError if a part cannot be read back.
        """
        buffers: list[Buffer] = []
        frames: list[Any] = []
        for order in orders:
            for part in self._parts.get(order, ()):
                found = part.frames if part.frames is not None else self._read(part)
                buffers += part.buffers
                frames += found
        if len({buffer.name for buffer in buffers}) == len(buffers):
            return tuple(buffers), frames
        last = {
            buffer.name: (buffer, frame)
            for buffer, frame in zip(buffers, split(buffers, frames), strict=True)
        }
        return tuple(buffer for buffer, _ in last.values()), [frame for _, frame in last.values()]

    def free(self, order: int) -> None:
        """Drop everything under an order, in memory and on disk."""
        for part in self._parts.pop(order, ()):
            self._evict(part)
            if part.location is not None:
                self._journal.release(part.location)

    def _read(self, part: Part) -> Sequence[Any]:
        assert part.location is not None
        self.reads += 1
        data = self._journal.read_body(part.location)
        if all(buffer.size_bytes for buffer in part.buffers):
            return [data]
        return split(part.buffers, [data])

    def _remember(self, part: Part) -> None:
        self._in_memory[id(part)] = part
        self.resident_bytes += part.size

    def _evict(self, part: Part) -> None:
        if self._in_memory.pop(id(part), None) is not None:
            self.resident_bytes -= part.size
            part.frames = None

    def _spill(self) -> None:
        while self.resident_bytes > self._memory_bytes and self._in_memory:
            oldest = next(iter(self._in_memory.values()))
            if oldest.location is None or oldest.position > self._journal.durable:
                return
            self._evict(oldest)
