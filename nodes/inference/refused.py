"""What becomes of messages that cannot be taken: they are counted, told of, and perhaps answered.

Job: count refused messages with a log line a second at the most, and find out whom a refused
`generate` would have answered.
Does not know: any socket or clock; `now` is an argument, in seconds.
Invariants: nothing of a refused message is trusted but its kind and its request_id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from engine.logs import get_logger
from engine.typed import Id, Mismatch, compile_decoder

from .messages import Generate, GenerateFailed

EVERY_S = 1.0
LONGEST = 300  # characters of a reason that are logged or sent


@dataclass(frozen=True, slots=True)
class _Named:
    request_id: Id


_NAMED = compile_decoder(_Named)


class Refusals:
    """Counts refused messages; tells of the last one, seldom."""

    def __init__(self) -> None:
        self.total = 0
        self._told = 0
        self._told_at = float("-inf")
        self._last = ""

    def add(self, why: str, now: float) -> None:
        """Count one."""
        self.total += 1
        self._last = why[:LONGEST]
        self.tell(now)

    def tell(self, now: float) -> None:
        """Log what was counted since the last time, if that was long enough ago."""
        if self.total > self._told and now - self._told_at >= EVERY_S:
            get_logger().warning("messages refused", total=self.total, last=self._last)
            self._told, self._told_at = self.total, now


def answer_to(frames: Sequence[Any], why: str) -> GenerateFailed | None:
    """Return the answer to a refused message, if it says that it is a `generate`, and which."""
    if len(frames) < 2 or bytes(frames[0]).rpartition(b" ")[2] != Generate.kind.encode():
        return None
    try:
        header = orjson.loads(memoryview(frames[1]))
        named = _NAMED({"request_id": header["request_id"]})
    except (orjson.JSONDecodeError, LookupError, TypeError, Mismatch):
        return None
    return GenerateFailed(named.request_id, "invalid", why[:LONGEST], retry=False)
