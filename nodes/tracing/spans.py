"""A span, and ids that everybody computes alike.

Job: hash what a span is about into OpenTelemetry's ids, and say which rollouts are traced.
Does not know: OpenTelemetry's SDK, sockets or clocks.
Invariants: ids depend on names alone and are never 0, which means none.
"""

from dataclasses import dataclass, field
from hashlib import blake2b

Attribute = str | int | float | bool
_HALF = 1 << 64


@dataclass(frozen=True, slots=True)
class Span:
    """One span of a rollout's trace; times in nanoseconds since 1970. `parent_id` 0: the root."""

    rollout_id: str
    name: str
    span_id: int
    parent_id: int
    began_ns: int
    ended_ns: int
    attributes: dict[str, Attribute] = field(default_factory=dict)
    error: str = ""


def trace_id(rollout_id: str) -> int:
    """Return the 128-bit id of a rollout's trace."""
    return _hash(16, "trace", rollout_id)


def root_id(rollout_id: str) -> int:
    """Return the 64-bit id of a rollout's root span."""
    return _hash(8, "rollout", rollout_id)


def stage_id(rollout_id: str, stage: str, attempt: int) -> int:
    """Return the id of the span of one attempt of one stage."""
    return _hash(8, "stage", rollout_id, stage, str(attempt))


def part_id(rollout_id: str, *names: str | int) -> int:
    """Return the id of any other span."""
    return _hash(8, "part", rollout_id, *map(str, names))


def is_traced(rollout_id: str, share: float) -> bool:
    """Whether a rollout is among the share that is traced."""
    return trace_id(rollout_id) % _HALF < share * _HALF


def _hash(size: int, *names: str) -> int:
    digest = blake2b("\0".join(names).encode("utf-8", "replace"), digest_size=size).digest()
    return int.from_bytes(digest, "big") or 1
