"""The training example's loss and recomputation, with torch in vLLM's environment."""

import json
import subprocess
from typing import Any

import pytest

from engine.process import child_environment

from ..vllm_kit import PYTHON, ROOT, SCRIPT_S

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("policy") / "found.json"
    script = ROOT / "tests" / "train" / "of_policy.py"
    own = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [str(PYTHON), str(script), str(file)],
        check=True,
        timeout=SCRIPT_S,
        env={**child_environment(), **own},
    )
    answer: dict[str, Any] = json.loads(file.read_text())
    return answer


def test_log_probabilities_with_a_shared_beginning_are_those_of_whole_rows(
    found: dict[str, Any],
) -> None:
    each = found["logprobs"]
    assert each["shared"] == 9
    assert len(each["wanted"]) > 20
    assert each["found"] == pytest.approx(each["wanted"], abs=1e-5)


def test_gradients_reach_the_shared_beginning_from_every_row(found: dict[str, Any]) -> None:
    assert found["gradients"] < 1e-4


def test_the_loss_is_clipped_where_a_step_further_would_gain_nothing(
    found: dict[str, Any],
) -> None:
    each = found["loss"]
    gained = [1.0, 1.28, 0.5, -1.5, -0.8]  # ratio times advantage, held at 0.8 and 1.28
    assert each["loss"] == pytest.approx(-sum(gained) / 5)
    assert each["gradient"] == pytest.approx([-0.2, 0.0, -0.1, 0.3, 0.0])
    assert (each["mean"], each["most"]) == pytest.approx((1.0, 1.5))
    assert each["clipped"] == pytest.approx(0.8)


def test_a_step_makes_better_tokens_likelier_and_worse_ones_less_likely(
    found: dict[str, Any],
) -> None:
    each = found["learning"]
    assert each["first_ratio"] == pytest.approx([1.0, 1.0], abs=1e-4)
    assert each["rise_where_better"] > each["rise_where_worse"]
    assert each["former_version_differs"] < 1e-5
    assert each["saved_differs"] < 1e-6


def test_versions_go_on_from_the_fleets_and_the_newest_two_stay(found: dict[str, Any]) -> None:
    assert found["check"]["versions"] == [5, 6, 7]
    assert found["check"]["kept"] == ["6", "7"]


def test_the_check_counts_every_sampled_token(found: dict[str, Any]) -> None:
    counted, sampled = found["check"]["tokens"]
    assert counted == sampled > 20
    assert found["check"]["most"] < 1e-5


@pytest.mark.parametrize("wrong", ["one token is another", "shifted by one"])
def test_what_did_not_arrive_intact_ends_the_run(found: dict[str, Any], wrong: str) -> None:
    assert "differ from the trainer's" in found["check"][wrong]


def test_a_batch_that_cannot_be_checked_ends_the_run(found: dict[str, Any]) -> None:
    assert "no row of this batch" in found["check"]["another version"]
