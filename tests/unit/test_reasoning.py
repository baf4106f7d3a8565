"""The task kind `reasoning`, with a model that says what a test wants."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine.errors import BoundaryError
from engine.records import Task
from nodes import tokens
from nodes.tasks import Generation, Output, Sampling, reasoning
from nodes.tasks.questions import reasoning_gym_tasks

VOCABULARY = tokens.load()


class SayingModel:
    """A model that says the same every time, and keeps what it was asked."""

    def __init__(self, text: str, finish_reason: str = "stop") -> None:
        self.ids = np.array(VOCABULARY.encode_marked(text), dtype=np.int32)
        self.finish_reason: Any = finish_reason
        self.prompts: list[npt.NDArray[np.int32]] = []
        self.released: list[str] = []

    async def generate(
        self, session: str, token_ids: npt.NDArray[np.int32], sampling: Sampling
    ) -> Generation:
        assert sampling.stop_token_ids == (VOCABULARY.end,)
        self.prompts.append(token_ids)
        logprobs = np.full(len(self.ids), -0.5, dtype=np.float32)
        spans = np.array([[0, len(self.ids), len(self.prompts)]], dtype=np.int32)
        return Generation(self.ids, logprobs, self.finish_reason, spans, cached_tokens=16)

    async def release(self, session: str) -> None:
        self.released.append(session)


class DeadModel(SayingModel):
    """A model whose backends are all gone."""

    async def generate(self, *_: Any) -> Generation:
        raise BoundaryError("backend", "nobody there")


def task(**changes: Any) -> Task:
    [line] = reasoning_gym_tasks(["gcd"], 1, 3, {"turns": 1, "max_tokens": 64})
    return Task(line["task_id"], line["kind"], line["payload"] | changes)


def context(model: SayingModel, **changes: Any) -> Any:
    spent: list[dict[str, int]] = []
    return SimpleNamespace(
        task=task(**changes),
        rollout_id="r",
        attempt=2,
        data={},
        arrays={},
        trajectory=None,
        model=model,
        usage=spent,
        spent=lambda **used: spent.append(used),
    )


def init_and_run(where: Any) -> Output:
    before = asyncio.run(reasoning.init(where))
    where.data["init"], where.arrays = before.data, before.arrays
    after = asyncio.run(reasoning.run(where))
    where.data["run"], where.trajectory = after.data, after.trajectory
    return after


def test_a_right_answer_is_worth_one() -> None:
    where = context(SayingModel("<think>Euclid.</think>\n<answer> 1 </answer><|im_end|>"))
    output = init_and_run(where)
    assert output.outcome is None
    scored = reasoning.eval(where)
    assert (scored.reward, scored.rewards, scored.data) == (1.0, {"gcd": 1.0}, {"answer": "1"})


@pytest.mark.parametrize("text", ["<answer>7</answer><|im_end|>", "I do not know<|im_end|>"])
def test_a_wrong_or_missing_answer_is_worth_less_than_a_tenth(text: str) -> None:
    where = context(SayingModel(text))
    init_and_run(where)
    assert reasoning.eval(where).reward < 0.1


def test_the_trajectory_is_masked_where_the_model_sampled() -> None:
    model = SayingModel("<answer>1</answer><|im_end|>")
    where = context(model)
    trajectory = init_and_run(where).trajectory
    prompt = len(model.prompts[0])
    assert trajectory.loss_mask.tolist() == [0] * prompt + [1] * len(model.ids)
    assert trajectory.logprobs.tolist() == [0.0] * prompt + [-0.5] * len(model.ids)
    assert trajectory.policy_spans.tolist() == [[prompt, len(trajectory), 1]]
    assert where.usage == [{"turns": 1, "tokens": len(model.ids)}]


def test_a_second_turn_starts_with_the_first_verbatim() -> None:
    model = SayingModel("<answer>1</answer><|im_end|>")
    output = init_and_run(context(model, turns=2))
    first, second = model.prompts
    assert second[: len(first)].tolist() == first.tolist()
    assert second[len(first) :][: len(model.ids)].tolist() == model.ids.tolist()
    assert output.trajectory.token_ids[: len(second)].tolist() == second.tolist()
    turns = output.data["turns"]
    assert [turn["prompt"] for turn in turns] == [[0, len(first)], [0, len(second)]]
    assert turns[1]["completion"] == [len(second), len(output.trajectory)]
    assert output.trajectory.policy_spans[:, 2].tolist() == [1, 2]


def test_a_completion_that_is_cut_off_ends_the_rollout_as_truncated() -> None:
    model = SayingModel("<think>so long", finish_reason="length")
    output = init_and_run(context(model, turns=2))
    assert output.outcome == "truncated"
    assert len(model.prompts) == 1


def test_the_session_is_released_when_the_conversation_ends() -> None:
    model = SayingModel("<answer>1</answer><|im_end|>")
    init_and_run(context(model))
    assert model.released == ["r.2"]


def test_the_session_is_released_when_the_backend_fails() -> None:
    model = DeadModel("")
    with pytest.raises(BoundaryError, match="nobody there"):
        init_and_run(context(model))
    assert model.released == ["r.2"]


def test_a_payload_that_does_not_fit_names_its_field() -> None:
    where = context(SayingModel(""), turns=0)
    with pytest.raises(BoundaryError, match="payload: turns: expected at least 1") as raised:
        asyncio.run(reasoning.init(where))
    assert not raised.value.retry


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "another one"}, "is another question here"),
        ({"dataset": "no_such"}, "no_such: ValueError"),
        ({"config": {"no_such": 1}}, "gcd: TypeError"),
    ],
)
def test_a_scorer_that_cannot_score_is_no_reward_of_zero(
    changes: dict[str, Any], message: str
) -> None:
    payload = reasoning.read_payload(task(**changes).payload)
    with pytest.raises(BoundaryError, match=message) as raised:
        reasoning.score(payload, "1")
    assert raised.value.boundary == "evaluator"


def test_tasks_take_the_datasets_in_turn_and_repeat_with_their_seed() -> None:
    names = ["gcd", "chain_sum"]
    made = list(reasoning_gym_tasks(names, 5, 3, {"turns": 1}))
    assert [line["task_id"] for line in made] == [
        "gcd-3-0",
        "chain_sum-3-0",
        "gcd-3-1",
        "chain_sum-3-1",
        "gcd-3-2",
    ]
    assert made == list(reasoning_gym_tasks(names, 5, 3, {"turns": 1}))
    with pytest.raises(ValueError, match="no dataset nope"):
        list(reasoning_gym_tasks(["gcd", "nope"], 5, 3, {}))
