"""Policies to compare with that the router does not have.

Job: be what others use. Does not know: what it is compared with.
Invariants: as of the router's policies, `choose` returns a backend that has joined and not left.
"""

from bisect import bisect
from hashlib import blake2b

POINTS = 128  # of each backend on the ring: shares within about 10 %


class ConsistentHashing:
    """A session's backend is the next one on a ring after the session's own point.

    It needs the session's name, which the router's policies do not: whoever asks sets `session`.
    """

    sticky = True

    def __init__(self) -> None:
        self.session = ""
        self._ring: list[tuple[int, str]] = []

    def join(self, backend: str, capacity: int) -> None:  # noqa: ARG002 - the protocol's
        """Put a backend's points on the ring."""
        self._ring += [(_point(f"{backend} {number}"), backend) for number in range(POINTS)]
        self._ring.sort()

    def leave(self, backend: str) -> None:
        """Take a backend's points off the ring."""
        self._ring = [each for each in self._ring if each[1] != backend]

    def weigh(self, backend: str, opened: int) -> None:
        """Ignore how many are open there: that is what hashing does."""

    def choose(self, avoid: str = "") -> str | None:
        """Return the backend after the session's point that is not avoided."""
        if not self._ring:
            return None
        start = bisect(self._ring, (_point(self.session), ""))
        ring = self._ring[start:] + self._ring[:start]
        return next((backend for _, backend in ring if backend != avoid), ring[0][1])


def _point(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
