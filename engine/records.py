"""The records that every part of rollmq shares, and what a trainer submits.

What holds arrays is in `trajectories`. This module knows no message, socket or file.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from .typed import Count, Id, Length, Record, Seconds, Text

Outcome = Literal["completed", "truncated", "agent_timeout", "failed", "cancelled", "stale"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

Dtype = Literal["int32", "int64", "float32", "float64", "uint8", "json"]
ITEM_BYTES: dict[str, int] = {
    "int32": 4,
    "int64": 8,
    "float32": 4,
    "float64": 8,
    "uint8": 1,
    "json": 1,
}

Name = Annotated[str, Length(1, 64)]


class Buffer(Record, frozen=True):
    """What one body frame holds: little-endian items in C order; `json` is UTF-8 text in bytes."""

    name: Annotated[Name, "unique within the message"]
    dtype: Annotated[Dtype, "the items' type, little-endian"]
    shape: Annotated[
        tuple[Count, ...], Length(0, 32), "the array's shape, C order; for json its bytes"
    ]

    @property
    def size_bytes(self) -> int:
        """The exact length of the frame that this describes."""
        return math.prod(self.shape, start=ITEM_BYTES[self.dtype])


class Usage(Record, frozen=True):
    """What an attempt has spent so far."""

    turns: Annotated[Count, "model calls"] = 0
    tokens: Annotated[Count, "tokens sampled"] = 0
    seconds: Annotated[Seconds, "seconds the handler worked"] = 0.0


class Failure(Record, frozen=True):
    """Why one attempt of a stage failed."""

    stage: Annotated[Id, "the stage"]
    attempt: Annotated[Count, "the attempt"]
    boundary: Annotated[Name, "what failed: handler, sandbox, backend, evaluator, worker, lease"]
    error: Annotated[Name, "the error's type"]
    message: Annotated[Text, "what it said"]
    node: Annotated[Text, "the node it happened on"] = ""


class StageTiming(Record, frozen=True):
    """Where one committed stage spent its time."""

    stage: Annotated[Id, "the stage"]
    attempt: Annotated[Count, "the attempt whose result was committed"]
    node: Annotated[Text, "the worker's node"]
    queue_s: Annotated[Seconds, "ready until dispatched, by the broker's clock"]
    lease_s: Annotated[Seconds, "dispatched until committed, by the broker's clock"]
    work_s: Annotated[Seconds, "in the handler, by the worker's clock"]


class Receipt(Record, frozen=True):
    """What a cancel stopped, and what had been spent on it by then."""

    rollout_id: Annotated[Id, "the rollout"]
    stage: Annotated[Text, "the stage it was in; empty if it had not begun"]
    running: Annotated[bool, "whether a worker was at it"]
    usage: Annotated[Usage, "spent on the stage that was stopped"]


@dataclass(frozen=True, slots=True)
class Published:
    """New weights are in use: by these backends, and by nobody else's; `failed` says why not."""

    policy_version: Annotated[Count, "of the weights"]
    backends: Annotated[tuple[Id, ...], "the backends that hold them"]
    failed: Annotated[dict[str, Text], "backends that do not, and are not used; with the reason"]


@dataclass(frozen=True, slots=True)
class BackendState:
    """An inference backend as the router sees it."""

    name: Annotated[Id, "the node's name"]
    state: Annotated[Name, "behind, probing, open, sick, refused, away or removed"]
    reason: Annotated[Text, "why it is not open"]
    policy_version: Annotated[Count, "of the weights that it holds"]
    capacity: Annotated[Count, "requests that it takes at once"]
    sessions: Annotated[Count, "that stay on it"]
    running: Annotated[Count, "requests that it works on"]
    waiting: Annotated[Count, "requests that wait for it"]
    draining: Annotated[bool, "whether it gets no new session"]
    added: Annotated[bool, "whether it was added while the router ran"]
    figures: Annotated[dict[str, float], "what it counts itself"]


@dataclass(frozen=True, slots=True)
class Task:
    """One problem, immutable. `payload` belongs to the task kind; the engine never reads it."""

    task_id: str
    kind: str
    payload: dict[str, Any]
