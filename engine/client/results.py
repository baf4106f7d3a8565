"""Results as trainers see them."""

from typing import Any

from ..arrays import read_body
from ..errors import RemoteProtocolError
from ..messages import Result
from ..trajectories import TRAJECTORY, Rollout, Trajectory


def rollout_from(message: Result, body: list[Any]) -> Rollout:
    """Build the trainer's record from a result; arrays are views on its frames.

    Raises: RemoteProtocolError if the token arrays do not fit together.
    """
    data, arrays = read_body(message.buffers, body)
    parts = {name: arrays.pop(name) for name in TRAJECTORY if name in arrays}
    try:
        trajectory = Trajectory(**parts) if "token_ids" in parts else None
    except (TypeError, ValueError) as wrong:
        raise RemoteProtocolError(str(wrong), f"rollout {message.rollout_id}") from None
    return Rollout(
        rollout_id=message.rollout_id,
        group_id=message.group_id,
        group_size=message.group_size,
        task_id=message.task_id,
        seq=message.seq,
        outcome=message.outcome,
        reward=message.reward,
        rewards=message.rewards,
        trainable=message.trainable,
        policy_version=message.policy_version,
        sampling_id=message.sampling_id,
        prompt=message.prompt,
        trajectory=trajectory,
        data=data,
        arrays=arrays,
        failures=message.failures,
        timings=message.timings,
        receipt=message.receipt,
        total_s=message.total_s,
    )
