"""The demonstrations of the examples: what the tiny model learns is what really happens."""

from typing import Any

import numpy as np
import pytest

from nodes.backends.tiny_demonstrations import KINDS, conversation, examples

from ..agent_kit import call
from .kinds import play

pytestmark = pytest.mark.timeout(600)
EVERY = list(examples())


@pytest.mark.parametrize("task", EVERY, ids=[task["task_id"] for task in EVERY])
@pytest.mark.parametrize(
    "provider", ["bubblewrap", pytest.param("apptainer", marks=pytest.mark.apptainer)]
)
def test_a_demonstration_is_token_by_token_what_a_rollout_holds_and_is_right(
    task: dict[str, Any], provider: str
) -> None:
    kind = KINDS[task["kind"]]
    says = [
        call(turn["name"], **turn["arguments"]) if isinstance(turn, dict) else turn
        for turn in task["demonstration"]
    ]
    ran, scored = play(kind, task["payload"], *says, provider=provider)
    learned, _ = conversation(task)
    assert scored.reward == 1.0
    assert ran.trajectory.token_ids.tolist() == np.concatenate([ids for ids, _ in learned]).tolist()
    mask = [by_model for ids, by_model in learned for _ in ids]
    assert ran.trajectory.loss_mask.tolist() == mask
