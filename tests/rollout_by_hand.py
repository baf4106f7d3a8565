"""Finished rollouts as a trainer receives them, made by hand.

rollout(1.0, [0, 0, 1, 1])                      # reward and loss mask
rollout(None, [], outcome="failed")             # the infrastructure failed
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine import Rollout, Trajectory


def rollout(
    reward: float | None,
    mask: Sequence[int],
    *,
    group: str = "g",
    name: str = "r",
    size: int = 1,
    **changed: Any,
) -> Rollout:
    """Return a rollout; spans: of version 0 unless given; segments: one unless given."""
    length = len(mask)
    spans = changed.pop("spans", [(0, length, 0)] if length else [])
    segments = changed.pop("segments", [(0, length)])
    chance = np.random.default_rng(length)
    sampled = np.array(mask, dtype=np.uint8)
    trajectory = Trajectory(
        changed.pop("token_ids", chance.integers(0, 100, length).astype(np.int32)),
        sampled,
        np.where(sampled, -chance.random(length), 0.0).astype(np.float32),
        np.array(spans, dtype=np.int32).reshape(-1, 3),
    )
    fields: dict[str, Any] = {
        "rollout_id": f"{group}-{name}",
        "group_id": group,
        "group_size": size,
        "task_id": group,
        "seq": 0,
        "outcome": "completed",
        "reward": reward,
        "rewards": {},
        "trainable": reward is not None,
        "trajectory": trajectory if length else None,
        "data": {},
        "arrays": {"segments": np.array(segments, dtype=np.int32).reshape(-1, 2)},
        "failures": (),
        "timings": (),
        "receipt": None,
        "total_s": 0.0,
    }
    return Rollout(**{**fields, **changed})
