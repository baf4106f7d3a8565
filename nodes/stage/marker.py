"""Whose code runs: a few bytes that guardian and host share.

The host writes the slot whose coroutine it steps into, and a flag for each slot whose plain
function runs in a thread. When the host stands still or dies, the guardian reads who it was.
Asyncio has no hook around a task's steps, so `Watched` drives the coroutine itself.
"""

import mmap
import os
import struct
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")
_SLOT = struct.Struct("<I")
THREADS_AT = 8
NOBODY = 0


class Marker:
    """The shared bytes; slots count from 1."""

    def __init__(self, descriptor: int, slots: int) -> None:
        self._map = mmap.mmap(descriptor, size_bytes(slots))
        self._slots = slots

    def enter(self, slot: int) -> None:
        """Say that the slot's coroutine is being stepped."""
        _SLOT.pack_into(self._map, 0, slot)

    def leave(self) -> None:
        """Say that no coroutine is being stepped."""
        _SLOT.pack_into(self._map, 0, NOBODY)

    def in_thread(self, slot: int, *, running: bool) -> None:
        """Say whether the slot's plain function runs in a thread."""
        self._map[THREADS_AT + slot] = running

    def running(self) -> int:
        """Return the one slot whose code runs, or NOBODY if none or more than one does."""
        stepped: int = _SLOT.unpack_from(self._map, 0)[0]
        if stepped:
            return stepped
        threads = [slot for slot in range(1, self._slots + 1) if self._map[THREADS_AT + slot]]
        return threads[0] if len(threads) == 1 else NOBODY

    def clear(self) -> None:
        """Forget everything, for a new host."""
        self._map[:] = bytes(len(self._map))


def size_bytes(slots: int) -> int:
    """Return the size of the shared bytes."""
    return THREADS_AT + slots + 1


def shared_memory(slots: int) -> int:
    """Return the descriptor of anonymous memory for a marker, to be inherited by the host."""
    descriptor = os.memfd_create("rollmq-marker", 0)
    os.ftruncate(descriptor, size_bytes(slots))
    return descriptor


class Watched:
    """Awaits a coroutine and marks its slot around every step of it."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], marker: Marker, slot: int) -> None:
        self._coroutine = coroutine
        self._marker = marker
        self._slot = slot

    def __await__(self) -> Generator[Any, Any, Any]:
        """Step the coroutine as a task would."""
        send: Any = self._coroutine.send
        value: Any = None
        while True:
            self._marker.enter(self._slot)
            try:
                future = send(value)
            except StopIteration as done:
                return done.value
            finally:
                self._marker.leave()
            try:
                value = yield future
                send = self._coroutine.send
            except BaseException as thrown:  # noqa: BLE001 - handed on into the coroutine
                value = thrown
                send = self._coroutine.throw
