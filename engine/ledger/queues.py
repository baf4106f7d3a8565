"""Order among rollouts that are ready: round-robin over clients, then priority, then oldest first.

A group's rollouts were accepted together, so "oldest first" keeps them close together. A rollout
that comes back after a lost attempt keeps its age. Removal is lazy: an entry counts only while its
ticket is the rollout's current one.
"""

from collections import deque
from heapq import heappop, heappush
from itertools import count, islice

from .rollouts import LedgerRollout

_TICKETS = count(1)


class FairQueue:
    """Rollouts that are ready for one stage, on one host or on any."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[int, int, int, LedgerRollout]]] = {}
        self._turns: deque[str] = deque()
        self._members: dict[int, LedgerRollout] = {}
        self.bytes = 0  # of what its stage will be sent

    def __len__(self) -> int:
        """Return how many rollouts wait."""
        return len(self._members)

    def longest(self, most: int) -> list[LedgerRollout]:
        """Return those that have waited longest here, the longest first."""
        return list(islice(self._members.values(), most))

    def push(self, rollout: LedgerRollout) -> None:
        """Add a rollout."""
        client_id = rollout.submission.client_id
        heap = self._heaps.get(client_id)
        if heap is None:
            heap = self._heaps[client_id] = []
            self._turns.append(client_id)
        rollout.ticket = next(_TICKETS)
        heappush(heap, (-rollout.submission.priority, rollout.order, rollout.ticket, rollout))
        self._members[rollout.order] = rollout
        self.bytes += rollout.submission.body_bytes + rollout.size_bytes

    def head(self) -> LedgerRollout | None:
        """Return the rollout whose turn it is, without removing it."""
        while self._turns:
            client_id = self._turns[0]
            heap = self._heaps[client_id]
            while heap and heap[0][2] != heap[0][3].ticket:
                heappop(heap)
            if heap:
                return heap[0][3]
            self._turns.popleft()
            del self._heaps[client_id]
        return None

    def take(self) -> LedgerRollout:
        """Remove and return the head; the next client has the turn.

        Raises: IndexError if nothing waits.
        """
        rollout = self.head()
        if rollout is None:
            raise IndexError("nothing waits")
        heappop(self._heaps[self._turns[0]])
        self._turns.rotate(-1)
        self.discard(rollout)
        return rollout

    def discard(self, rollout: LedgerRollout) -> None:
        """Remove a rollout wherever it stands; it must be in this queue."""
        rollout.ticket = 0
        del self._members[rollout.order]
        self.bytes -= rollout.submission.body_bytes + rollout.size_bytes
