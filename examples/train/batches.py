"""Groups of rollouts into what one update learns from: rows of tokens, with advantages.

Job: group-normalised advantages; a row for each segment of a trajectory; rows side by side, padded.
Does not know: torch, or where rollouts come from.
Invariants: a token counts if the policy sampled it, and once. Segments never meet in one row. What
all rows begin with is held once. Nothing is made from text: the IDs are those that were sampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine import Rollout

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
TINY = 1e-6  # rewards that differ by less are one reward


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence of tokens.

    token_ids: int64 [n]. sampled: bool [n], by the policy. logprobs: float32 [n], as delivered.
    version: of the weights that sampled first. exact: tokens before this place came from `version`
    alone; later ones may rest on keys and values of older weights.
    """

    token_ids: Ints
    sampled: Bools
    logprobs: Floats
    advantage: float
    version: int
    exact: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows side by side; place 0 of a row is where the shared beginning ends.

    beginning: int64 [p]. token_ids: int64 [rows, width]; 0 after a row's end.
    counts: bool [rows, width]; tokens to learn from. The first column never counts.
    logprobs, advantages: float32 [n]; of the tokens that count, row by row.
    """

    beginning: Ints
    token_ids: Ints
    counts: Bools
    logprobs: Floats
    advantages: Floats


def advantages(rewards: Sequence[float]) -> Floats:
    """Return float32 [n]: by how many deviations each reward is above its group's mean.

    Zeros for a group whose rewards are all the same. Source: GRPO, arXiv 2402.03300.
    """
    found = np.asarray(rewards, dtype=np.float64)
    deviation = float(found.std())
    if deviation < TINY:
        return np.zeros(len(found), dtype=np.float32)
    gained: Floats = ((found - found.mean()) / deviation).astype(np.float32)
    return gained


def usable(group: Sequence[Rollout]) -> list[Rollout]:
    """Return the rollouts to learn from: not those that the infrastructure failed."""
    return [
        each for each in group if each.trainable and each.trajectory and each.reward is not None
    ]


def rows(groups: Sequence[Sequence[Rollout]]) -> list[Row]:
    """Return the rows of groups, one for each segment of each usable rollout."""
    made = []
    for group in groups:
        members = usable(group)
        rewards = [each.reward for each in members if each.reward is not None]
        for rollout, advantage in zip(members, advantages(rewards), strict=True):
            made += _rows(rollout, float(advantage))
    return made


def _rows(rollout: Rollout, advantage: float) -> list[Row]:
    assert rollout.trajectory is not None
    whole = rollout.trajectory
    sampled = whole.loss_mask == 1
    made = []
    for start, end in rollout.arrays["segments"].tolist():
        spans = [span for span in whole.policy_spans.tolist() if start <= span[0] < end]
        if not spans:
            continue  # nothing was sampled in this segment
        version = spans[0][2]
        later = [first for first, _, other in spans if other != version]
        made.append(
            Row(
                whole.token_ids[start:end].astype(np.int64),
                sampled[start:end],
                whole.logprobs[start:end],
                advantage,
                version,
                min([end, *later]) - start,
            )
        )
    return made


def exact(row: Row) -> Row:
    """Return a row of which only those tokens count that its first version sampled alone."""
    sampled = row.sampled & (np.arange(len(row.sampled)) < row.exact)
    return Row(row.token_ids, sampled, row.logprobs, row.advantage, row.version, row.exact)


def collate(chosen: Sequence[Row]) -> Batch:
    """Return rows side by side.

    Raises: ValueError if there is none, or one counts its first token, which nothing predicts.
    """
    if not chosen:
        raise ValueError("no rows")
    shared = _shared(chosen)
    width = max(len(row.token_ids) for row in chosen) - shared
    token_ids = np.zeros((len(chosen), width), dtype=np.int64)
    counts = np.zeros((len(chosen), width), dtype=np.bool_)
    for place, row in enumerate(chosen):
        length = len(row.token_ids) - shared
        token_ids[place, :length] = row.token_ids[shared:]
        counts[place, :length] = row.sampled[shared:]
    return Batch(
        chosen[0].token_ids[:shared],
        token_ids,
        counts,
        np.concatenate([row.logprobs[row.sampled] for row in chosen]),
        np.concatenate([np.full(row.sampled.sum(), row.advantage, np.float32) for row in chosen]),
    )


def _shared(chosen: Sequence[Row]) -> int:
    """Return how many tokens all rows begin with; the last one before a sampled one is not shared.

    A token is predicted from the place before it, which therefore has to be in the row.
    """
    firsts = [
        int(row.sampled.argmax()) if row.sampled.any() else len(row.sampled) for row in chosen
    ]
    if min(firsts) == 0:
        raise ValueError("a row begins with a token that was sampled: nothing predicts it")
    most = min(firsts) - 1
    first = chosen[0].token_ids[:most]
    differ = [
        int((row.token_ids[:most] != first).argmax())
        for row in chosen
        if (row.token_ids[:most] != first).any()
    ]
    return min([most, *differ])
