"""The training example's problems, batches and reports, without processes."""

import json
import random
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from engine import Batch, Rollout
from engine.sampling import BatchReport, Reason
from examples.train import report, sampling, sums
from examples.train.sampling import batches, mean_reward
from nodes import tokens
from nodes.agent import ChatmlTemplate
from nodes.tasks.calculator import last_answer, read_payload

from ..rollout_by_hand import rollout

VOCABULARY = tokens.load()


class FakeClient:
    """Gives batches as `Client.sample` does, each of them for so many prompts."""

    def __init__(self, prompts: list[int]) -> None:
        self._prompts = prompts
        self.asked: dict[str, Any] = {}

    def sample(
        self, tasks: Iterator[int], groups: int, group_size: int, **asked: Any
    ) -> Iterator[Batch]:
        self.asked = {"groups": groups, "group_size": group_size, **asked}
        for number, wanted in enumerate(self._prompts):
            given = len(list(islice(tasks, wanted)))
            reason: Reason = "complete" if given == wanted else "ended"
            yield Batch(number, [], reason, "", BatchReport(), is_final=True)


def sampled(client: FakeClient, groups: int) -> list[int]:
    found = batches(client, count(), groups, 8)  # type: ignore[arg-type]
    return [each.batch.number for each in found]


def group(name: str, *rewards: float | None) -> list[Rollout]:
    size = len(rewards)
    return [
        rollout(reward, [0, 1] if reward is not None else [], group=name, name=str(n), size=size)
        for n, reward in enumerate(rewards)
    ]


def test_sampling_goes_on_while_the_trainer_works_and_paces_itself() -> None:
    client = FakeClient([3])
    assert sampled(client, groups=2) == [0]
    asked = client.asked
    assert (asked["groups"], asked["group_size"], asked["keep"]) == (2, 8, "dapo")
    assert (asked["ahead"], asked["staleness"], asked["staleness_bound"]) == (1, "pace", 1)


def test_prompts_end_when_too_few_groups_are_informative() -> None:
    most = 2 * sampling.PROMPTS
    assert sampled(FakeClient([most, most, 1]), groups=2) == [0, 1, 2]
    assert sampled(FakeClient([most, most + 1, 1]), groups=2) == [0]


def test_a_mean_of_nothing_is_no_reward_of_zero() -> None:
    assert mean_reward(group("a", 1, 0, None)) == 0.5
    with pytest.raises(ValueError, match="no rollout has a reward"):
        mean_reward(group("a", None))


def test_the_same_seed_draws_the_same_tasks_and_their_kind_reads_them() -> None:
    first, again = (list(islice(sums.tasks("t", 5), 50)) for _ in range(2))
    assert [task.payload for task in first] == [task.payload for task in again]
    assert len({task.payload["question"] for task in first}) > 30
    for task in first:
        assert read_payload(task.payload).result == task.payload["result"]


def test_a_step_changes_the_value_as_its_words_say() -> None:
    problem = sums.Sum(
        12, (sums.Step("Add", 30), sums.Step("Multiply by", 3), sums.Step("Subtract", 14))
    )
    assert problem.question == (
        "Start with 12. Add 30. Multiply by 3. Subtract 14. What is the result?"
    )
    assert problem.result == 112


@pytest.mark.parametrize("slip", ["", *sums.SLIPS])
def test_a_transcript_is_right_unless_it_slips(slip: sums.Slip) -> None:
    chance, template = random.Random(3), ChatmlTemplate(VOCABULARY)
    right = 0
    for _ in range(100):
        problem = sums.draw(chance)
        parts = sums.transcript(problem, slip, chance, template)
        said = VOCABULARY.decode(parts[-1][0])
        right += last_answer(said) == problem.result
        assert [by_model for _, by_model in parts[:2]] == [False, True]
    assert right == 100 if slip == "" else right < 50


def step(number: int, **changed: float) -> report.Step:
    names = report.Step.__dataclass_fields__
    fields: dict[str, Any] = dict.fromkeys(names, 1.0) | {"number": number} | changed
    return report.Step(**fields)


def test_a_summary_weighs_differences_by_tokens_and_keeps_the_largest() -> None:
    steps = [
        step(1, diff_mean=1e-6, diff_max=4e-6, checked=300, rollouts=10, failed=0),
        step(2, diff_mean=3e-6, diff_max=9e-6, checked=100, rollouts=12, failed=2),
    ]
    found = report.summarize(steps, 0.25, 0.9, 1e-3, 9.5, finished=True)
    assert found.logprob_abs_diff_mean == pytest.approx(1.5e-6)
    assert found.logprob_abs_diff_max == 9e-6
    assert (found.steps, found.tokens_checked, found.rollouts) == (2, 400, 22)
    assert (found.rollouts_failed, found.minutes) == (2, 9.5)


def test_a_run_that_did_not_finish_has_a_summary_that_says_so(tmp_path: Path) -> None:
    report.write_summary(tmp_path, report.summarize([], 0.25, None, 1e-3, 0.5, finished=False))
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["finished"] is False
    assert found["reward_last"] is None
    assert found["steps"] == 0


def test_a_problem_that_was_wrong_and_became_right_is_shown_before_and_after(
    tmp_path: Path,
) -> None:
    before = [*group("a", 1.0), *group("b", 0.0)]
    after = [*group("c", 1.0), *group("d", 1.0)]
    report.write_trajectories(tmp_path, before, after)
    assert "rollout b-0" in (tmp_path / "before.txt").read_text()
    assert "rollout d-0" in (tmp_path / "after.txt").read_text()
    assert len((tmp_path / "trajectories.jsonl").read_text().splitlines()) == 4
