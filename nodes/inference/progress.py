"""Which backends work on requests and get no further.

Job: how long each backend has had requests running while nothing that it counts moved.
Does not know: why. Time is an argument, in seconds.
Invariants: one that runs nothing starts anew, and so does one whose tokens moved,
sampled or answered.
"""

from engine.records import BackendState

Seen = tuple[float, float]


class Progress:
    """The last movement of every backend."""

    def __init__(self) -> None:
        self._moved: dict[str, tuple[Seen, float]] = {}

    def look(self, state: BackendState, now: float) -> float:
        """Return how long a backend has stood still with requests running, in seconds."""
        seen = (state.figures.get("tokens", 0.0), state.figures.get("served_tokens", 0.0))
        before = self._moved.get(state.name)
        if before is None or before[0] != seen or not state.running:
            self._moved[state.name] = (seen, now)
            return 0.0
        return now - before[1]
