"""A rollout as rows: a prompt and a response each, which is what every trainer's batch is made of.

Job: split a trajectory at its segments, cut each into prompt and response, and say which policy
versions sampled it.
Does not know: any trainer's names, padding or tensors.
Invariants: token IDs are taken verbatim. A response begins and ends with a sampled token. No row
spans two segments, because one must not attend to the other (docs/agent.md). A rollout that is not
trainable has no rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import ClientError
from ..trajectories import Rollout, Trajectory

Segments = Literal["last", "all"]
"""Of a rollout that had to begin its prompt anew: the last segment with sampled tokens, or all."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence to train on.

    prompt_ids: int32 [p], p >= 1.
    response_ids: int32 [r], r >= 1; all turns, tool answers among them.
    response_mask: uint8 [r]; 1 where the policy sampled the token.
    logprobs: float32 [r]; of the policy that sampled, 0 where the mask is 0.
    versions: the policy versions that sampled it, each once, in order; empty if nothing says so.
    """

    rollout: Rollout
    reward: float
    prompt_ids: npt.NDArray[np.int32]
    response_ids: npt.NDArray[np.int32]
    response_mask: npt.NDArray[np.uint8]
    logprobs: npt.NDArray[np.float32]
    versions: tuple[int, ...]


def rows(rollout: Rollout, segments: Segments = "last") -> tuple[Row, ...]:
    """Return the rows of a rollout, none if it is not trainable.

    With `last` there is one at most: a group then has a row for each member, as group-relative
    advantages assume. With `all` the reward stands on each row.

    Raises: ValueError if a segment begins with a sampled token, which then has no prompt.
    """
    trajectory, reward = rollout.trajectory, rollout.reward
    if not rollout.trainable or trajectory is None or reward is None:
        return ()
    edges = rollout.arrays.get("segments")
    spans = [(0, len(trajectory))] if edges is None else [(int(a), int(b)) for a, b in edges]
    found = [
        _row(rollout, reward, trajectory, start, end)
        for start, end in spans
        if trajectory.loss_mask[start:end].any()
    ]
    return tuple(found if segments == "all" else found[-1:])


def left_out(groups: Iterable[Iterable[Rollout]]) -> tuple[str, ...]:
    """Return the ids of the rollouts that have no rows, in order."""
    return tuple(each.rollout_id for group in groups for each in group if not rows(each))


def nothing_trainable(rollouts: Iterable[Rollout]) -> ClientError:
    """Return the error for a batch of which nothing is left, with the first cause."""
    lost = list(rollouts)
    causes = (
        f"{each.rollout_id} {each.outcome}: {failure.error}: {failure.message}"
        for each in lost
        for failure in each.failures[-1:]
    )
    why = next(causes, "none of them failed")
    return ClientError(f"nothing to train on in {len(lost)} rollouts; {why}")


def _row(rollout: Rollout, reward: float, whole: Trajectory, start: int, end: int) -> Row:
    sampled = np.flatnonzero(whole.loss_mask[start:end]) + start
    first, last = int(sampled[0]), int(sampled[-1]) + 1
    if first == start:
        raise ValueError(f"rollout {rollout.rollout_id}: token {start} is sampled without a prompt")
    return Row(
        rollout=rollout,
        reward=reward,
        prompt_ids=whole.token_ids[start:first],
        response_ids=whole.token_ids[first:last],
        response_mask=whole.loss_mask[first:last],
        logprobs=whole.logprobs[first:last],
        versions=_versions(whole.policy_spans, first, last),
    )


def _versions(spans: npt.NDArray[np.int32], first: int, last: int) -> tuple[int, ...]:
    inside = (span for span in spans.tolist() if span[0] < last and span[1] > first)
    return tuple(dict.fromkeys(version for _, _, version in inside))
