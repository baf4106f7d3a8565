"""The stage host's spans: what a handler does within one attempt: turns, tools, sandboxes.

Job: let code that runs in an attempt say what it does, wherever it is called from.
Does not know: OpenTelemetry, or who listens.
Invariants: where nobody traces, `span` costs one look at a context variable. A span of an attempt
is a child of that attempt's span, whose id follows from the rollout, stage and attempt.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count

from .spans import Attribute, Span, part_id, stage_id

Emit = Callable[[list[Span]], None]
Notes = dict[str, Attribute]


class AttemptSpans:
    """Where the spans of one attempt go."""

    def __init__(self, rollout_id: str, stage: str, attempt: int, emit: Emit) -> None:
        self._rollout_id = rollout_id
        self._place = (stage, attempt)
        self._emit = emit
        self._numbers = count(1)

    def give(self, kind: str, began_ns: int, notes: Notes, error: str) -> None:
        """Give one span that ends now; its name is its kind and what it is about."""
        name, (stage, attempt) = self._rollout_id, self._place
        span_id = part_id(name, stage, attempt, next(self._numbers))
        where: Notes = {"rollmq.stage": stage, "rollmq.attempt": attempt}
        parent = stage_id(name, stage, attempt)
        times = (began_ns, time.time_ns())
        self._emit([Span(name, kind, span_id, parent, *times, {**where, **notes}, error)])


CURRENT: ContextVar[AttemptSpans | None] = ContextVar("spans of the attempt", default=None)


@contextmanager
def span(kind: str) -> Iterator[Notes]:
    """Trace a block; what is put into the notes becomes the span's attributes."""
    spans = CURRENT.get()
    notes: Notes = {}
    if spans is None:
        yield notes
        return
    began_ns, error = time.time_ns(), ""
    try:
        yield notes
    except BaseException as wrong:
        error = f"{type(wrong).__name__}: {wrong}"[:2000]
        raise
    finally:
        spans.give(kind, began_ns, notes, error)
