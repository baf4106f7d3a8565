"""A server's step loop in simulated time: continuous batching, one token a step and sequence.

A step takes base_s + prefill_token_s for each prompt token that is computed + decode_sequence_s for
each sequence that only decodes; the defaults are of the order of Llama-3.1-8B on one H100
(docs/backends.md). A prompt is computed whole in the first step after it arrived.

Job: say when each token comes. Does not know: what the tokens are, sockets or a clock; `now` is an
argument, in seconds.
Invariants: steps follow one another without gaps while there is work; a sequence ends in the step
of its last token; nothing ends before the step that contains it ends.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

Work = TypeVar("Work")


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What a step costs, in seconds; `speed` divides all of it."""

    base_s: float = 5.75e-3
    prefill_token_s: float = 17.25e-6
    decode_sequence_s: float = 6e-6
    speed: float = 1.0

    def seconds(self, prefill_tokens: int, decoding: int) -> float:
        """Return how long one step takes."""
        work_s = prefill_tokens * self.prefill_token_s + decoding * self.decode_sequence_s
        return (self.base_s + work_s) / self.speed


@dataclass(slots=True)
class Sequence(Generic[Work]):
    """One request in the batch; times are None until they have come."""

    ticket: str
    prefill_tokens: int
    length: int
    arrived_at: float
    work: Work
    emitted: int = 0
    started_at: float | None = None
    first_at: float | None = None
    ended_at: float | None = None


class Batch(Generic[Work]):
    """Sequences that are computed together."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._arrived: dict[str, Sequence[Work]] = {}
        self._running: dict[str, Sequence[Work]] = {}
        self.due_at: float | None = None
        self.steps = 0
        self.tokens = 0

    def __len__(self) -> int:
        """Return how many sequences are not over."""
        return len(self._arrived) + len(self._running)

    def tickets(self) -> tuple[str, ...]:
        """Return the tickets of the sequences that are not over."""
        return (*self._running, *self._arrived)

    def add(self, sequence: Sequence[Work]) -> None:
        """Let a sequence join at the next step; `advance` to its arrival first."""
        self._arrived[sequence.ticket] = sequence
        if self.due_at is None:
            self._begin(sequence.arrived_at)

    def abort(self, ticket: str) -> None:
        """Remove a sequence; one that is not here is ignored."""
        self._arrived.pop(ticket, None)
        self._running.pop(ticket, None)

    def clear(self) -> None:
        """Remove everything."""
        self._arrived.clear()
        self._running.clear()
        self.due_at = None

    def advance(self, now: float) -> list[Sequence[Work]]:
        """Run the steps that are over by `now`; return the sequences that ended, in order."""
        ended: list[Sequence[Work]] = []
        while self.due_at is not None and self.due_at <= now:
            ended += self._end(self.due_at)
            self._begin(self.due_at)
        return ended

    def _begin(self, now: float) -> None:
        decoding, prefill_tokens = len(self._running), 0
        for sequence in self._arrived.values():
            sequence.started_at = now
            prefill_tokens += sequence.prefill_tokens
        self._running |= self._arrived
        self._arrived.clear()
        seconds = self._times.seconds(prefill_tokens, decoding)
        self.due_at = now + seconds if self._running else None

    def _end(self, now: float) -> list[Sequence[Work]]:
        self.steps += 1
        self.tokens += len(self._running)
        ended = []
        for sequence in self._running.values():
            sequence.emitted += 1
            if sequence.first_at is None:
                sequence.first_at = now
            if sequence.emitted >= sequence.length:
                sequence.ended_at = now
                ended.append(sequence)
        for sequence in ended:
            del self._running[sequence.ticket]
        return ended
