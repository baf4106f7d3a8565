"""A server's step loop in simulated time: steps without gaps while there is work.

A step takes base_s + prefill_token_s for each prompt token that is computed + decode_sequence_s for
each sequence that decodes; the defaults are of the order of Llama-3.1-8B on one H100
(docs/backends.md). What a step computes is `schedule`'s matter.

Job: say when each token comes, and which weights it is from.
Does not know: what the tokens are, sockets or a clock; `now` is an argument, in seconds.
Invariants: nothing ends before the step that contains it ends. Weights change between steps only,
while the loop is still. A request's marks say from which token on it had which version, in order.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from .schedule import Gate, Request, Scheduler, Step

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


class StepLoop(Generic[Work]):
    """A scheduler whose steps take time."""

    def __init__(self, scheduler: Scheduler[Work], times: StepTimes, version: int = 0) -> None:
        self.scheduler = scheduler
        self.version = version
        self.slowdown = 1.0
        self.due_at: float | None = None
        self._times = times
        self._step: Step[Work] | None = None
        self._open: dict[str, Request[Work]] = {}

    def __len__(self) -> int:
        """Return how many requests are not over."""
        return len(self._open)

    @property
    def is_still(self) -> bool:
        """Whether a pause is complete: no step is under way, and none of what may run is left."""
        gate = self.scheduler.gate
        return self._step is None and (gate == "closed" or (gate == "no_new" and not self._begun()))

    def tickets(self) -> tuple[str, ...]:
        """Return the tickets of the requests that are not over."""
        return tuple(self._open)

    def add(self, request: Request[Work]) -> None:
        """Let a request join at the next step; `advance` to its arrival first.

        Raises: ValueError if it can never be computed.
        """
        self.scheduler.add(request)
        request.marks.append((0, self.version))
        self._open[request.ticket] = request
        self._begin_if_idle(request.arrived_at)

    def abort(self, ticket: str, now: float) -> Request[Work] | None:
        """End a request early and return it; None if it is not here."""
        request = self._open.pop(ticket, None)
        if request is not None:
            self.scheduler.remove(request)
            request.ended_at = now
            self._begin_if_idle(now)
        return request

    def abort_begun(self, now: float) -> list[Request[Work]]:
        """End all requests that have tokens and return them; the others go on later."""
        begun = [request for request in self._open.values() if request.emitted]
        for request in begun:
            self.abort(request.ticket, now)
        return begun

    def clear(self) -> None:
        """End everything, and open the gate; what the cache knows stays."""
        for request in self._open.values():
            self.scheduler.remove(request)
        self._open.clear()
        self._step = self.due_at = None
        self.scheduler.gate = "open"

    def pause(self, gate: Gate) -> None:
        """Run only what `gate` lets through after the step under way."""
        self.scheduler.gate = gate

    def resume(self, now: float) -> None:
        """Run everything again."""
        self.scheduler.gate = "open"
        self._begin_if_idle(now)

    def update(self, version: int) -> None:
        """Sample with other weights from here on.

        Raises: ValueError if the loop is not still.
        """
        if not self.is_still:
            raise ValueError("weights change only while nothing is computed: pause first")
        self.version = version
        for request in self._open.values():
            if request.marks[-1][0] == request.emitted:
                request.marks.pop()
            request.marks.append((request.emitted, version))

    def advance(self, now: float) -> list[Request[Work]]:
        """Run the steps that are over by `now`; return the requests that ended, in order."""
        ended: list[Request[Work]] = []
        while self.due_at is not None and self.due_at <= now:
            ended += self._end(self.due_at)
            self._begin(self.due_at)
        return ended

    def _begun(self) -> bool:
        return any(request.started_at is not None for request in self._open.values())

    def _begin_if_idle(self, now: float) -> None:
        if self._step is None:
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._step = self.scheduler.begin_step()
        self.due_at = None
        if self._step is None:
            return
        for request in self._step.started:
            if request.started_at is None:
                request.started_at = now
        seconds = self._times.seconds(self._step.prefill_tokens, self._step.decoding)
        self.due_at = now + self.slowdown * seconds

    def _end(self, now: float) -> list[Request[Work]]:
        assert self._step is not None
        step, self._step = self._step, None
        ended = self.scheduler.end_step(step)
        for request in step.prefilling:
            if request.first_at is None and request.emitted:
                request.first_at = now
        for request in ended:
            request.ended_at = now
            del self._open[request.ticket]
        return ended
