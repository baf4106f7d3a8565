"""The records that every part of rollmq shares: what a trainer submits and what it receives.

Arrays are numpy arrays from the inference reply to the trainer; their dtypes are fixed here.
This module knows no message, socket or file.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from .typed import Count, Id, Length, Seconds, Text

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
_INT32, _UINT8, _FLOAT32 = np.dtype("<i4"), np.dtype("u1"), np.dtype("<f4")
TRAJECTORY = ("token_ids", "loss_mask", "logprobs", "policy_spans")  # the arrays of a Trajectory


@dataclass(frozen=True, slots=True)
class Buffer:
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


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt has spent so far."""

    turns: Annotated[Count, "model calls"] = 0
    tokens: Annotated[Count, "tokens sampled"] = 0
    seconds: Annotated[Seconds, "seconds the handler worked"] = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one attempt of a stage failed."""

    stage: Annotated[Id, "the stage"]
    attempt: Annotated[Count, "the attempt"]
    boundary: Annotated[Name, "what failed: handler, sandbox, backend, evaluator, worker, lease"]
    error: Annotated[Name, "the error's type"]
    message: Annotated[Text, "what it said"]
    node: Annotated[Text, "the node it happened on"] = ""


@dataclass(frozen=True, slots=True)
class StageTiming:
    """Where one committed stage spent its time."""

    stage: Annotated[Id, "the stage"]
    attempt: Annotated[Count, "the attempt whose result was committed"]
    node: Annotated[Text, "the worker's node"]
    queue_s: Annotated[Seconds, "ready until dispatched, by the broker's clock"]
    lease_s: Annotated[Seconds, "dispatched until committed, by the broker's clock"]
    work_s: Annotated[Seconds, "in the handler, by the worker's clock"]


@dataclass(frozen=True, slots=True)
class Receipt:
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


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """A rollout's token-level record.

    token_ids: int32 [n]; the whole conversation, prompts and completions, verbatim.
    loss_mask: uint8 [n]; 1 where the policy sampled the token.
    logprobs: float32 [n]; of the policy that sampled, 0 where loss_mask is 0.
    policy_spans: int32 [k, 3]; (start, end, policy_version) over token positions, end exclusive.

    Raises: ValueError if lengths or dtypes differ, or if a log-probability is not finite.
    """

    token_ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.uint8]
    logprobs: npt.NDArray[np.float32]
    policy_spans: npt.NDArray[np.int32] = field(
        default_factory=lambda: np.zeros((0, 3), dtype=np.int32)
    )

    def __post_init__(self) -> None:
        _expect("token_ids", self.token_ids, _INT32, 1)
        _expect("loss_mask", self.loss_mask, _UINT8, 1)
        _expect("logprobs", self.logprobs, _FLOAT32, 1)
        _expect("policy_spans", self.policy_spans, _INT32, 2)
        if not len(self.token_ids) == len(self.loss_mask) == len(self.logprobs):
            lengths = {len(self.token_ids), len(self.loss_mask), len(self.logprobs)}
            raise ValueError(f"token_ids, loss_mask and logprobs differ in length: {lengths}")
        total = self.logprobs.sum()  # one pass; finite numbers may still add up to infinity
        if not math.isfinite(total) and not np.isfinite(self.logprobs).all():
            raise ValueError("a log-probability is not finite")

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.token_ids)


def _expect(name: str, array: npt.NDArray[Any], dtype: np.dtype[Any], dimensions: int) -> None:
    if array.dtype != dtype or array.ndim != dimensions:
        expected = f"{dtype.name} with {dimensions} dimension(s)"
        raise ValueError(f"{name} must be {expected}, got {array.dtype} with {array.ndim}")


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One finished rollout, as the trainer receives it.

    `reward` is None whenever the infrastructure failed or the rollout was cancelled: never 0.
    `data` holds what each stage left as JSON, by stage; `arrays` every other array by name.
    `policy_version` is that of the first token sampled; `sampling_id` and `prompt` say which group
    of which sampling it is of, if it is of one.
    """

    rollout_id: str
    group_id: str
    group_size: int
    task_id: str
    seq: int
    outcome: Outcome
    reward: float | None
    rewards: dict[str, float]
    trainable: bool
    trajectory: Trajectory | None
    data: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]
    failures: tuple[Failure, ...]
    timings: tuple[StageTiming, ...]
    receipt: Receipt | None
    total_s: float
    policy_version: int | None = None
    sampling_id: str = ""
    prompt: int = 0
