"""Which workers have room, by stage and host, the one with the most of it first.

Job: keep workers with credit left in lines, one for each stage and host and one for all hosts, so
that giving a rollout to one looks at the first in line and not at every worker. A worker takes its
new place when somebody next looks: what happens to it within one turn costs one move. Only where
the first in line has too few bytes left, or its host may take nothing, the next ones are looked at.
Does not know: rollouts, queues, or which hosts may take work now.
Invariants: a worker that did not change since it was placed stands in line if and only if it has
room for anything at all, where its load says.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable

from .rollouts import LedgerWorker

Place = tuple[float, float, str, LedgerWorker]
"""Load, when last given work, worker_id to break ties, and the worker: sorted, the best first."""


ANY = ""  # in place of a host: all of them


class Rooms:
    """Lines of workers with room, for each stage and host."""

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, list[Place]]] = {}
        self._places: dict[str, Place] = {}
        self._changed: dict[str, LedgerWorker] = {}

    def changed(self, worker: LedgerWorker) -> None:
        """Note that a worker has joined, or that its credit, leases or state are others now."""
        self._changed[worker.worker_id] = worker

    def gone(self, worker: LedgerWorker) -> None:
        """Forget a worker."""
        self._changed.pop(worker.worker_id, None)
        self._leave(worker)

    def best(
        self, stage: int, host: str, size_bytes: int, avoid: str, is_open: Callable[[str], bool]
    ) -> LedgerWorker | None:
        """Return the least loaded worker of a host, or of ANY, that has room for so many bytes.

        Only hosts that are open count. The worker named `avoid` is the last choice.
        """
        self._settle()
        last_choice = None
        for _, _, worker_id, worker in self._lines.get(stage, {}).get(host, ()):
            if worker.has_room(size_bytes) and is_open(worker.host):
                if worker_id != avoid:
                    return worker
                last_choice = worker
        return last_choice

    def faults(self, workers: Iterable[LedgerWorker]) -> list[str]:
        """Return what is wrong, given every worker that there is."""
        known = {worker.worker_id: worker for worker in workers}
        wrong = [f"{name} is gone" for name in [*self._places, *self._changed] if name not in known]
        for name, worker in known.items():
            if name not in self._changed and self._places.get(name) != _place(worker):
                wrong.append(f"{name} stands elsewhere than its load says")
        wanted: dict[tuple[int, str], list[Place]] = {}
        for place in sorted(self._places.values()):
            for host in (place[3].host, ANY):
                wanted.setdefault((place[3].stage, host), []).append(place)
        lines = {
            (s, host): line for s, lines in self._lines.items() for host, line in lines.items()
        }
        if lines != wanted:
            wrong.append("the lines are not the workers that have room, in order")
        return wrong

    def _settle(self) -> None:
        if self._changed:
            for worker in self._changed.values():
                self._leave(worker)
                self._stand(worker)
            self._changed.clear()

    def _stand(self, worker: LedgerWorker) -> None:
        place = _place(worker)
        if place is not None:
            self._places[worker.worker_id] = place
            lines = self._lines.setdefault(worker.stage, {})
            for host in (worker.host, ANY):
                insort(lines.setdefault(host, []), place)

    def _leave(self, worker: LedgerWorker) -> None:
        place = self._places.pop(worker.worker_id, None)
        if place is not None:
            lines = self._lines[worker.stage]
            for host in (worker.host, ANY):
                line = lines[host]
                del line[bisect_left(line, place)]
                if not line:
                    del lines[host]


def _place(worker: LedgerWorker) -> Place | None:
    if not worker.has_room(0):
        return None
    return len(worker.leases) / worker.slots, worker.used_at, worker.worker_id, worker
