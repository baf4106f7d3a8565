"""verl's own DataProto and advantages take a batch of rollmq's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.output import write_rollout

from ..rollout_kit import failed, member
from .kit import python

pytestmark = [pytest.mark.trl, pytest.mark.timeout(3000)]

AGENT_LOOP = {  # what `AgentLoopWorker._postprocess` puts into its batch, of text
    *("prompts", "responses", "response_mask", "input_ids", "attention_mask", "position_ids"),
    *("rollout_log_probs", "rm_scores"),
}
TURNS = ((0, (1, 2, 3)), (1, (4, 5)), (0, (6, 7)), (1, (8,)), (0, (9,)))
ROLLOUTS = (
    member("a-0", "a", TURNS, reward=1.0, rewards={"exact": 1.0}),
    member("a-1", "a", reward=0.0, rewards={"exact": 0.0}),
    failed("b-0", "b"),
    member("b-1", "b", reward=0.5),
    member("b-2", "b", reward=0.0),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("verl")
    rollouts, file = directory / "rollouts.jsonl", directory / "found.json"
    with rollouts.open("wb") as out:
        for each in ROLLOUTS:
            write_rollout(out, each)
    python(Path(__file__).with_name("reference_verl.py"), rollouts, file)
    answer: dict[str, Any] = json.loads(file.read_text())
    return answer


def test_the_batch_has_the_names_and_dtypes_of_verls_agent_loop(found: dict[str, Any]) -> None:
    assert found["version"] == "0.9.1"
    assert set(found["names"]) == AGENT_LOOP
    floats = {"rollout_log_probs", "rm_scores"}
    expected = {name: "float32" if name in floats else "int64" for name in AGENT_LOOP}
    assert found["dtypes"] == {name: f"torch.{dtype}" for name, dtype in expected.items()}
    assert found["positions"]


def test_it_is_cut_and_joined_by_verl_without_loss(found: dict[str, Any]) -> None:
    assert found["rows"] == 4
    assert found["halves"] == [2, 2]
    assert found["same"]
    assert found["uid"] == ["a", "a", "b", "b"]
    assert found["left_out"] == ["b-0"]


def test_verl_reads_the_rewards_that_were_given(found: dict[str, Any]) -> None:
    assert found["scores"] == [1.0, 0.0, 0.5, 0.0]
    assert found["exact"] == ["1.0", "0.0", "nan", "nan"]


def test_verl_normalizes_by_group_and_on_sampled_tokens_only(found: dict[str, Any]) -> None:
    mask, advantages = np.array(found["mask"]), np.array(found["advantages"])
    assert mask[0].tolist() == [1, 1, 0, 0, 1, 0, 0]
    rewards = np.array(found["scores"]).reshape(2, 2)
    spread = rewards.std(1, ddof=1, keepdims=True)
    expected = ((rewards - rewards.mean(1, keepdims=True)) / (spread + 1e-6)).ravel()
    np.testing.assert_allclose(advantages, mask * expected[:, None], atol=1e-4)
