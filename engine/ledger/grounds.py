"""Which journal rows a dispatch stands on: it leaves once those are durable, not all before it.

Job: note the position of each row that is kept, and name the last one that a dispatch needs: its
task's, its rollout's, and the list of workers, which tells a restarted broker whom to wait for.
Does not know: the journal, or what the rows say.
Invariants: rows that are durable are forgotten.

A slot that is free again need not wait until the result that freed it is durable: if that is lost,
its worker still holds it, says so in its hello, and sends it again.
"""

from .instructions import WORKERS, Dispatch, Keep, KeepValue


class Grounds:
    """Positions of the rows that are not durable yet."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}  # by order; the lowest position first
        self._workers = 0

    def kept(self, change: Keep | KeepValue, position: int) -> None:
        """Note that a change has this position."""
        if isinstance(change, Keep):
            self._rows.pop(change.order, None)
            self._rows[change.order] = position
        elif change.key == WORKERS:
            self._workers = position

    def of(self, work: Dispatch) -> int:
        """Return the position that must be durable before this may leave; 0 if there is none."""
        rows = self._rows
        return max(rows.get(work.order, 0), rows.get(work.task_order, 0), self._workers)

    def durable(self, position: int) -> None:
        """Forget what lies up to a position."""
        rows = self._rows
        while rows:
            order, first = next(iter(rows.items()))
            if first > position:
                break
            del rows[order]
