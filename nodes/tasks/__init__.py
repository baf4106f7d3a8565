"""What a task kind is made of: functions named as the pipeline's stages.

A task kind is a module. Each stage of the topology calls the module's function of that name:

    async def init(context: Context) -> Output
    async def run(context: Context) -> Output
    async def eval(context: Context) -> Output

They may be plain functions, which run in a thread. Kinds are found by entry point (group
`rollmq.tasks`) or by dotted module name. This module knows no socket and no process.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from engine.messages.worker import EarlyOutcome
from engine.records import Task
from engine.trajectories import Trajectory

from ..sandboxes.contract import Sandbox, Spec

FinishReason = Literal["stop", "length", "abort"]
SENTINEL = -9999.0  # what vLLM writes where it has no log-probability


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one completion."""

    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One completion, token by token.

    token_ids: int32 [n]. logprobs: float32 [n], of the policy that sampled.
    policy_spans: int32 [k, 3]; (start, end, policy_version) over the completion, end exclusive,
    none empty; they cover it in order, or there are none.
    cached_tokens: prompt tokens that the backend's prefix cache already held.
    queue_s, prefill_s, decode_s: seconds in the backend; before the prompt was computed, until the
    first token, and until the last. backend: the node that sampled.

    Raises: ValueError if the arrays do not fit each other, or if a log-probability is missing, not
    finite or above 0.
    """

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    finish_reason: FinishReason
    policy_spans: npt.NDArray[np.int32]
    cached_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    backend: str = ""

    def __post_init__(self) -> None:
        _expect_arrays(self.token_ids, self.logprobs, self.policy_spans)
        logprobs = self.logprobs
        if len(logprobs) and not (
            logprobs.min() > SENTINEL and logprobs.max() <= 0
        ):  # nan: neither
            raise ValueError("a log-probability is missing, not finite or above 0")
        _expect_spans(self.policy_spans[:, :2].tolist(), len(self.token_ids))


def _expect_arrays(
    token_ids: npt.NDArray[Any], logprobs: npt.NDArray[Any], spans: npt.NDArray[Any]
) -> None:
    kinds = token_ids.dtype.name, logprobs.dtype.name, spans.dtype.name
    if kinds != ("int32", "float32", "int32") or spans.ndim != 2 or spans.shape[1] != 3:
        raise ValueError(f"the completion's arrays are {', '.join(kinds)}")
    if token_ids.ndim != 1 or token_ids.shape != logprobs.shape:
        raise ValueError(f"{token_ids.shape} token IDs but {logprobs.shape} log-probabilities")


def _expect_spans(edges: list[list[int]], tokens: int) -> None:
    starts, ends = [start for start, _ in edges], [end for _, end in edges]
    is_whole = [0, *ends] == [*starts, tokens]
    if edges and not (is_whole and all(start < end for start, end in edges)):
        raise ValueError(f"policy_spans {edges} do not cover {tokens} tokens in order")


class Model(Protocol):
    """The policy, behind the inference router."""

    async def generate(
        self, session: str, token_ids: npt.NDArray[np.int32], sampling: Sampling
    ) -> Generation:
        """Sample a completion of `token_ids`, int32 [n]; a session stays on one backend.

        Raises: BoundaryError("backend") if no backend answered in time.
        """
        ...

    async def release(self, session: str) -> None:
        """End a session; its backend may forget it."""
        ...


class Context(Protocol):
    """What a handler is given."""

    task: Task
    rollout_id: str
    group_id: str
    stage: str
    attempt: int
    data: dict[str, Any]
    trajectory: Trajectory | None
    arrays: dict[str, npt.NDArray[Any]]
    model: Model

    def spent(self, *, turns: int = 0, tokens: int = 0) -> None:
        """Count what this attempt has used, for receipts and the summary."""
        ...

    async def sandbox(self, spec: Spec | None = None) -> Sandbox:
        """Start a sandbox of this attempt's own; without a spec, return the one that was pinned.

        It is stopped when the attempt ends, on every path, unless the output is pinned: then every
        sandbox that the attempt has started stays until the rollout is over, and later stages get
        the newest by a call without a spec. They find it as they left it: a stage that is tried
        again does too.

        Raises: BoundaryError("sandbox") if none can be started, or there is none any more.
        """
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """What a stage leaves to later stages and the trainer.

    data: JSON, delivered under the stage's name. final: skip the stages that remain.
    pinned: later stages run on this host. outcome: how the agent ended, if not by finishing.
    """

    data: dict[str, Any] | None = None
    trajectory: Trajectory | None = None
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    reward: float | None = None
    rewards: dict[str, float] | None = None
    outcome: EarlyOutcome | None = None
    final: bool = False
    pinned: bool = False
    trainable: bool | None = None
