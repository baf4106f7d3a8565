"""What guardian and host say to each other over their socket pair: one JSON record a packet.

Sends never block: what the socket does not take waits, bounded by the slots of the worker.
This module knows no ZeroMQ and no handler.
"""

import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from engine.messages import Held
from engine.typed import Count, Id, compile_decoder

PACKET_BYTES = 1 << 20
BATCH = 200  # attempts in one packet: 200 ids of 800 bytes fit the smallest default buffer


@dataclass(frozen=True, slots=True)
class Connect:
    """Guardian to host: a broker has welcomed us; pull work there, send unsettled results again."""

    broker_id: Id
    work: Id


@dataclass(frozen=True, slots=True)
class Drop:
    """Guardian to host: stop these attempts, or forget their results."""

    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Reread:
    """Guardian to host: the topology's file has another text."""


@dataclass(frozen=True, slots=True)
class AreYouThere:
    """Guardian to host: answer from the loop."""

    nonce: Count


@dataclass(frozen=True, slots=True)
class Here:
    """Host to guardian: the answer of a loop that runs."""

    nonce: Count


TO_HOST = (Connect, Drop, Reread, AreYouThere)
TO_GUARDIAN = (Here,)


class PipeEnd:
    """One end of the socket pair."""

    def __init__(self, end: socket.socket, accepts: tuple[type[Any], ...]) -> None:
        end.settimeout(0)
        self.socket = end
        self._decoders: dict[str, Callable[[Any], Any]] = {
            kind.__name__: compile_decoder(kind) for kind in accepts
        }
        self._waiting: deque[bytes] = deque()
        self.closed = False

    def send(self, record: Any) -> None:
        """Send a record, or keep it until the socket takes it."""
        self._waiting.append(orjson.dumps([record.__class__.__name__, record]))
        self.flush()

    def flush(self) -> bool:
        """Send what waits; return whether something still does."""
        while self._waiting and not self.closed:
            try:
                self.socket.send(self._waiting[0])
            except BlockingIOError:
                return True
            except OSError:
                self.closed = True
                return False
            self._waiting.popleft()
        return False

    def receive(self) -> list[Any]:
        """Return the records that are there; `closed` is set once the other end is gone."""
        records: list[Any] = []
        while True:
            try:
                packet = self.socket.recv(PACKET_BYTES)
            except BlockingIOError:
                return records
            except OSError:
                packet = b""
            if not packet:
                self.closed = True
                return records
            kind, value = orjson.loads(packet)
            records.append(self._decoders[kind](value))


def batches(items: Sequence[Held]) -> list[tuple[Held, ...]]:
    """Cut a list into packets' worth."""
    return [tuple(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]
