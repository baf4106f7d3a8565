"""How a backend is chosen, by name.

    sticky-least-loaded   a session stays; a new one goes where the fewest are open per capacity
    least-loaded          every turn goes where the fewest requests are open per capacity
    round-robin           every turn goes to the next backend
    random                every turn goes to any backend, from a seed

Job: rank the backends that take new work.
Does not know: sessions, requests or time; only a number of open things for each backend.
Invariants: `choose` returns a backend that has joined and not left, and None only if there is none;
the one to avoid is chosen only if it is alone.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Literal, Protocol

PolicyName = Literal["sticky-least-loaded", "least-loaded", "round-robin", "random"]
Entry = tuple[float, int, str, int]
MakePolicy = Callable[[], "Policy"]


class Policy(Protocol):
    """Rank backends; `sticky` says whether open things are sessions or requests."""

    sticky: bool

    def join(self, backend: str, capacity: int) -> None:
        """Add a backend with room for `capacity` open things."""
        ...

    def leave(self, backend: str) -> None:
        """Remove a backend; unknown ones are ignored."""
        ...

    def weigh(self, backend: str, opened: int) -> None:
        """Note how many things are open there; unknown backends are ignored."""
        ...

    def choose(self, avoid: str = "") -> str | None:
        """Return the backend for the next new thing."""
        ...


@dataclass(slots=True)
class _Seat:
    capacity: int
    chosen_at: int
    opened: int = 0
    stamp: int = 0
    ramping: bool = False

    @property
    def load(self) -> float:
        return self.opened / self.capacity


class LeastLoaded:
    """Choose by open things over capacity, ties by least recently used, from a min-heap.

    A heap entry is valid while its stamp is its seat's; stale ones are dropped when met. A backend
    that joins a busy fleet ramps up: until its load reaches the mean it gets at most every n-th new
    thing, n the number of backends, instead of all of them.
    """

    def __init__(self, *, sticky: bool) -> None:
        self.sticky = sticky
        self._seats: dict[str, _Seat] = {}
        self._heap: list[Entry] = []
        self._choices = 0
        self._pushes = 0

    def join(self, backend: str, capacity: int) -> None:
        """Add a backend; it ramps up if others are busy."""
        busy = any(seat.opened for seat in self._seats.values())
        self._seats[backend] = _Seat(capacity, self._choices, ramping=busy)
        self._push(backend)

    def leave(self, backend: str) -> None:
        """Remove a backend."""
        self._seats.pop(backend, None)

    def weigh(self, backend: str, opened: int) -> None:
        """Note how many things are open there."""
        seat = self._seats.get(backend)
        if seat is None or seat.opened == opened:
            return
        seat.opened = opened
        if seat.ramping and seat.load >= self._mean_load():
            seat.ramping = False
        self._push(backend)

    def choose(self, avoid: str = "") -> str | None:
        """Return the least loaded backend that is neither avoided nor resting."""
        self._choices += 1
        passed: list[Entry] = []
        chosen = None
        while self._heap and chosen is None:
            entry = heappop(self._heap)
            if not self._valid(entry):
                continue
            passed.append(entry)
            if entry[2] != avoid and not self._rests(entry[2]):
                chosen = entry[2]
        for entry in passed:
            heappush(self._heap, entry)
        if chosen is None:
            chosen = _first(passed, avoid)
        return self._mark(chosen)

    def _mark(self, chosen: str | None) -> str | None:
        if chosen is not None:
            self._seats[chosen].chosen_at = self._choices
            self._push(chosen)
        return chosen

    def _rests(self, backend: str) -> bool:
        seat = self._seats[backend]
        return seat.ramping and self._choices - seat.chosen_at < max(2, len(self._seats))

    def _mean_load(self) -> float:
        seats = self._seats.values()
        return sum(seat.opened for seat in seats) / sum(seat.capacity for seat in seats)

    def _valid(self, entry: Entry) -> bool:
        seat = self._seats.get(entry[2])
        return seat is not None and seat.stamp == entry[3]

    def _push(self, backend: str) -> None:
        seat = self._seats[backend]
        self._pushes += 1
        seat.stamp = self._pushes
        heappush(self._heap, (seat.load, seat.chosen_at, backend, seat.stamp))
        if len(self._heap) > 8 * len(self._seats) + 64:
            self._heap = [entry for entry in self._heap if self._valid(entry)]
            heapify(self._heap)


def _first(entries: list[Entry], avoid: str) -> str | None:
    names = [entry[2] for entry in entries]
    return next((name for name in names if name != avoid), names[0] if names else None)


class _Listed:
    """The backends in order of joining; their load does not matter."""

    sticky = False

    def __init__(self) -> None:
        self._backends: list[str] = []

    def join(self, backend: str, capacity: int) -> None:  # noqa: ARG002 - the protocol's
        self._backends.append(backend)

    def leave(self, backend: str) -> None:
        if backend in self._backends:
            self._backends.remove(backend)

    def weigh(self, backend: str, opened: int) -> None:
        pass

    def _others(self, avoid: str) -> list[str]:
        return [name for name in self._backends if name != avoid] or self._backends


class RoundRobin(_Listed):
    """Choose the backends in turn."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0

    def choose(self, avoid: str = "") -> str | None:
        """Return the next backend."""
        backends = self._others(avoid)
        if not backends:
            return None
        self._turn += 1
        return backends[self._turn % len(backends)]


class Random(_Listed):
    """Choose any backend, from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)  # noqa: S311 - spreads load, keeps no secret

    def choose(self, avoid: str = "") -> str | None:
        """Return any backend."""
        backends = self._others(avoid)
        return self._random.choice(backends) if backends else None


def named(name: str, seed: int = 0) -> Policy:
    """Return a fresh policy.

    Raises: ValueError if there is none of that name.
    """
    policies: dict[str, MakePolicy] = {
        "sticky-least-loaded": lambda: LeastLoaded(sticky=True),
        "least-loaded": lambda: LeastLoaded(sticky=False),
        "round-robin": RoundRobin,
        "random": lambda: Random(seed),
    }
    if name not in policies:
        raise ValueError(f"no policy {name!r}; there are {', '.join(policies)}")
    return policies[name]()
