"""Failures on request, so that what is built on a backend can be tried against them.

    options: {faults: [{kind: die, after: 100}, {kind: full, chance: 0.05, times: 0}]}

    refuse   answered as a server that is stopping (503): `draining`
    full     answered as an overloaded one (429): `full`
    error    answered as one that failed inside (500): `backend_error`
    hang     never answered, though every heartbeat names it
    slow     every step takes `factor` times as long while the request is open
    die      the process is killed at once and says nothing

Job: decide which request fails how. Does not know: how a failure is carried out.
Invariants: the same faults, seed and number of requests give the same decisions.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from engine.typed import Count

FaultKind = Literal["refuse", "full", "error", "hang", "slow", "die"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule; the first that applies to a request decides."""

    kind: FaultKind
    after: Annotated[Count, "requests that are spared first"] = 0
    times: Annotated[Count, "requests that it hits; 0 is no limit"] = 1
    chance: Annotated[float, "of each request after those spared"] = 1.0
    factor: Annotated[float, "of slow"] = 10.0


class Faults:
    """The rules at work; asked once for each request."""

    def __init__(self, faults: Sequence[Fault], seed: int = 0) -> None:
        self._faults = tuple(faults)
        self._hits = [0] * len(self._faults)
        self._chance = random.Random(seed)  # noqa: S311 - has to be repeatable
        self._requests = 0

    def next(self) -> Fault | None:
        """Return what befalls the next request."""
        number, self._requests = self._requests, self._requests + 1
        found = None
        for place, fault in enumerate(self._faults):
            applies = self._chance.random() < fault.chance and number >= fault.after
            is_spent = fault.times and self._hits[place] >= fault.times
            if applies and not is_spent and found is None:
                found = fault
                self._hits[place] += 1
        return found
