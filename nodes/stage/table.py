"""What the host holds and whose code runs: memory that guardian and host share.

    0      slot whose coroutine is being stepped, uint32; 0 is nobody
    16..   one record of RECORD bytes a slot, from slot 1 on:
           state uint8 (FREE, RUNNING, FINISHED), in_thread uint8, id length uint16, attempt uint32,
           deadline float64 (the system's monotonic clock), the rollout_id in UTF-8

The host writes, the guardian reads, and no message passes for an attempt's begin and end:
heartbeats list what the table holds. A record read while it is written names an attempt that nobody
holds, which the broker's answer corrects. When the host stands still or dies, the table says whose
code it was. Asyncio has no hook around a task's steps, so `Watched` drives the coroutine itself.
"""

import mmap
import os
import struct
from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.messages import Held

T = TypeVar("T")
_CURRENT = struct.Struct("<I")
_RECORD = struct.Struct("<BBHId")
_DEADLINE = struct.Struct("<d")
HEADER = 16
RECORD = 1024
DEADLINE = _RECORD.size - _DEADLINE.size
ID_BYTES = RECORD - _RECORD.size
FREE, RUNNING, FINISHED = 0, 1, 2
NOBODY = 0
SPARE = 4  # slots for handlers being stopped and results not settled, per slot of credit


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt that the host holds."""

    slot: int
    held: Held
    running: bool
    in_thread: bool
    deadline: float


class SlotTable:
    """The shared memory; slots count from 1."""

    def __init__(self, descriptor: int, slots: int) -> None:
        self._map = mmap.mmap(descriptor, size_bytes(slots))
        self.slots = slots

    def begin(self, slot: int, held: Held, deadline: float) -> None:
        """Enter an attempt whose handler begins."""
        name = held[0].encode()[:ID_BYTES]
        start = HEADER + (slot - 1) * RECORD
        text = start + _RECORD.size
        self._map[text : text + len(name)] = name
        _RECORD.pack_into(self._map, start, RUNNING, 0, len(name), held[1], deadline)

    def finish(self, slot: int) -> None:
        """Say that the slot's handler is over; its result waits to be settled."""
        self._map[HEADER + (slot - 1) * RECORD] = FINISHED

    def clear(self, slot: int) -> None:
        """Say that the slot holds nothing."""
        self._map[HEADER + (slot - 1) * RECORD] = FREE

    def in_thread(self, slot: int, *, running: bool) -> None:
        """Say whether the slot's plain function runs in a thread."""
        self._map[HEADER + (slot - 1) * RECORD + 1] = running

    def enter(self, slot: int) -> None:
        """Say that the slot's coroutine is being stepped."""
        _CURRENT.pack_into(self._map, 0, slot)

    def leave(self) -> None:
        """Say that no coroutine is being stepped."""
        _CURRENT.pack_into(self._map, 0, NOBODY)

    def entries(self) -> list[Entry]:
        """Return every attempt that is held."""
        found = []
        for slot, noted in enumerate(self._states(), 1):
            if noted == FREE:
                continue
            start = HEADER + (slot - 1) * RECORD
            state, thread, length, attempt, deadline = _RECORD.unpack_from(self._map, start)
            text = start + _RECORD.size
            name = self._map[text : text + length].decode("utf-8", "replace")
            found.append(Entry(slot, (name, attempt), state == RUNNING, bool(thread), deadline))
        return found

    def is_any_due(self, now: float) -> bool:
        """Return whether the deadline of a running attempt has passed; a fraction of `entries`."""
        starts = (
            HEADER + at * RECORD for at, state in enumerate(self._states()) if state == RUNNING
        )
        return any(_DEADLINE.unpack_from(self._map, start + DEADLINE)[0] < now for start in starts)

    def _states(self) -> bytes:
        return self._map[HEADER : HEADER + self.slots * RECORD : RECORD]

    def culprit(self) -> str:
        """Return the one rollout whose code runs, or "" if none or more than one does."""
        current = _CURRENT.unpack_from(self._map, 0)[0]
        entries = self.entries()
        stepped = [entry for entry in entries if entry.slot == current]
        suspects = stepped or [entry for entry in entries if entry.in_thread]
        return suspects[0].held[0] if len(suspects) == 1 else ""

    def wipe(self) -> None:
        """Forget everything, for a new host."""
        self._map[:] = bytes(len(self._map))


def size_bytes(slots: int) -> int:
    """Return the size of the memory."""
    return HEADER + slots * RECORD


def slots_of(descriptor: int) -> int:
    """Return how many slots a table's memory was made for."""
    return (os.fstat(descriptor).st_size - HEADER) // RECORD


def shared_memory(slots: int) -> int:
    """Return the descriptor of anonymous memory for a table, to be inherited by the host."""
    descriptor = os.memfd_create("rollmq-slots", 0)
    os.ftruncate(descriptor, size_bytes(slots))
    return descriptor


class Watched:
    """Awaits a coroutine and marks its slot around every step of it."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], table: SlotTable, slot: int) -> None:
        self._coroutine = coroutine
        self._table = table
        self._slot = slot

    def __await__(self) -> Generator[Any, Any, Any]:
        """Step the coroutine as a task would."""
        send: Any = self._coroutine.send
        value: Any = None
        while True:
            self._table.enter(self._slot)
            try:
                future = send(value)
            except StopIteration as done:
                return done.value
            finally:
                self._table.leave()
            try:
                value = yield future
                send = self._coroutine.send
            except BaseException as thrown:  # noqa: BLE001 - handed on into the coroutine
                value = thrown
                send = self._coroutine.throw
