"""Sequence numbers: a set of them that grows mostly in order, and ranges for messages."""


class Sequence:
    """Numbers from 1 on: all up to a mark, and a few beyond it."""

    def __init__(self) -> None:
        self._mark = 0
        self._beyond: set[int] = set()

    def __contains__(self, seq: int) -> bool:
        """Whether the number was added."""
        return seq <= self._mark or seq in self._beyond

    def __len__(self) -> int:
        """Return how many numbers it holds, counting all up to the mark."""
        return self._mark + len(self._beyond)

    @property
    def last(self) -> int:
        """The largest number; 0 if there is none."""
        return max(self._beyond, default=self._mark)

    def skip_to(self, mark: int) -> None:
        """Add every number up to `mark`."""
        self._mark = max(self._mark, mark)
        self._beyond = {seq for seq in self._beyond if seq > self._mark}

    def add(self, seq: int) -> None:
        """Add a number; the mark moves up as far as there is no gap."""
        if seq > self._mark:
            self._beyond.add(seq)
            while self._mark + 1 in self._beyond:
                self._mark += 1
                self._beyond.remove(self._mark)


def ranges(seqs: list[int]) -> tuple[tuple[int, int], ...]:
    """Compress sequence numbers into inclusive ranges."""
    found: list[tuple[int, int]] = []
    for seq in sorted(set(seqs)):
        if found and found[-1][1] == seq - 1:
            found[-1] = (found[-1][0], seq)
        else:
            found.append((seq, seq))
    return tuple(found)
