"""What a trainer receives: a rollout, and its tokens as arrays.

Job: the records that hold numpy arrays, from the inference reply to the trainer; their dtypes are
fixed here. Does not know: messages, sockets or files.
Invariants: a node that forwards arrays unseen, as the broker does, does not import this.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .records import Failure, Outcome, Receipt, StageTiming

TRAJECTORY = ("token_ids", "loss_mask", "logprobs", "policy_spans")  # the arrays of a Trajectory
_INT32, _UINT8, _FLOAT32 = np.dtype("<i4"), np.dtype("u1"), np.dtype("<f4")


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
        total = np.add.reduce(self.logprobs)  # one pass; finite ones may add up to infinity
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
