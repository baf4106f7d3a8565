"""Finished rollouts for tests, token by token.

member("g-0", "g", [(0, [1, 2]), (1, [3, 4]), (0, [5]), (1, [6])], reward=1.0)

Pieces are (whether the policy sampled it, token ids); the log-probability of a sampled token t is
-t / 64, exact in float32.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.records import Failure
from engine.trajectories import Rollout, Trajectory

Pieces = Sequence[tuple[int, Sequence[int]]]
LOST = Failure("run", 1, "sandbox", "SandboxError", "the disk is full")


def logprob(token: int) -> float:
    return -token / 64


def trajectory(pieces: Pieces, spans: Sequence[tuple[int, int, int]] = ()) -> Trajectory:
    ids = np.array([token for _, tokens in pieces for token in tokens], dtype=np.int32)
    mask = np.array([sampled for sampled, tokens in pieces for _ in tokens], dtype=np.uint8)
    logprobs = (-ids / 64 * mask).astype(np.float32)
    return Trajectory(ids, mask, logprobs, np.array(spans, dtype=np.int32).reshape(-1, 3))


def member(
    name: str,
    group: str = "g",
    pieces: Pieces = ((0, (1, 2)), (1, (3, 4))),
    *,
    spans: Sequence[tuple[int, int, int]] = (),
    segments: Sequence[tuple[int, int]] | None = None,
    **changes: Any,
) -> Rollout:
    arrays = {} if segments is None else {"segments": np.array(segments, dtype=np.int32)}
    fields: dict[str, Any] = {
        "rollout_id": name,
        "group_id": group,
        "group_size": 2,
        "task_id": f"task of {group}",
        "seq": 1,
        "outcome": "completed",
        "reward": 1.0,
        "rewards": {},
        "trainable": True,
        "trajectory": trajectory(pieces, spans),
        "data": {},
        "arrays": arrays,
        "failures": (),
        "timings": (),
        "receipt": None,
        "total_s": 1.0,
    }
    return Rollout(**fields | changes)


def failed(name: str, group: str = "g", **changes: Any) -> Rollout:
    """Return a member that the infrastructure lost."""
    lost = {
        "outcome": "failed",
        "reward": None,
        "trainable": False,
        "trajectory": None,
        "failures": (LOST,),
    }
    return member(name, group, **lost | changes)
