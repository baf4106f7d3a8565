"""The task kind `calculator`, and the calculator itself."""

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BoundaryError
from nodes.agent import ToolError
from nodes.agent.arithmetic import MOST, evaluate
from nodes.commands import tasks
from nodes.tasks import Output, calculator

from ..agent_kit import END, VOCABULARY, ScriptedModel, call, context, qwen_folder, qwen_tokenizer

PAYLOAD = {"question": "Start with 12. Add 30. Multiply by 3. What is the result?", "result": 126}
SAYS = (
    call("calculator", expression="12 + 30") + END,
    call("calculator", expression="42 * 3") + END,
    "<answer>126</answer>" + END,
)


def played(model: ScriptedModel, **changes: Any) -> tuple[Output, Output]:
    where = context(model, {**PAYLOAD, **changes})
    where.data["init"] = asyncio.run(calculator.init(where)).data
    ran = asyncio.run(calculator.run(where))
    where.data["run"], where.trajectory = ran.data, ran.trajectory
    return ran, asyncio.run(calculator.eval(where))


def test_the_conversation_is_the_one_that_the_documentation_shows() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "agent.md").read_text(encoding="utf-8")
    shown = re.search(r"```\n(<\|im_start\|>.*?)\n```", docs, re.DOTALL)
    assert shown is not None
    question = "Start with 12. Add 30. Multiply by 3. Subtract 14. What is the result?"
    says = [
        *SAYS[:2],
        call("calculator", expression="126 - 14") + END,
        f"<answer>112</answer>{END}",
    ]
    ran, scored = played(ScriptedModel(*says), question=question, result=112)
    assert VOCABULARY.decode(ran.trajectory.token_ids) == shown[1]
    assert scored.reward == 1.0


@pytest.mark.parametrize(
    ("said", "answer", "reward"),
    [
        ("<answer> 126\n</answer>", 126, 1.0),
        ("<answer>1</answer><answer>126</answer>", 126, 1.0),
        ("<answer>125</answer>", 125, 0.0),
        ("<answer>126.0</answer>", None, 0.0),
        ("126", None, 0.0),
        ("<think><answer>126</answer>", None, 0.0),
        (f"<answer>{'9' * 5000}</answer>", None, 0.0),
    ],
)
def test_only_the_exact_result_is_worth_anything(
    said: str, answer: int | None, reward: float
) -> None:
    _, scored = played(ScriptedModel(said + END), max_tokens=6000, context_tokens=9000)
    assert (scored.data, scored.reward) == ({"answer": answer}, reward)


def test_a_models_own_template_is_used_when_the_task_names_its_folder(tmp_path: Path) -> None:
    tokenizer = qwen_tokenizer()
    model = ScriptedModel(
        *SAYS, encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    )
    ran, scored = played(model, template=str(qwen_folder(tmp_path / "m")))
    assert scored.reward == 1.0
    assert len(ran.data["segments"]) == 1
    shown = tokenizer.decode(ran.trajectory.token_ids.tolist(), skip_special_tokens=False)
    assert "<tool_response>\n42\n</tool_response>" in shown


def test_a_payload_that_does_not_fit_names_its_field() -> None:
    with pytest.raises(BoundaryError, match="payload: turns: expected at least 1") as raised:
        asyncio.run(calculator.init(context(None, {**PAYLOAD, "turns": 0})))
    assert not raised.value.retry


def test_tasks_are_made_the_same_again_and_their_results_are_right(tmp_path: Path) -> None:
    made = list(calculator.calculator_tasks(50, 7, {"turns": 3}))
    assert made == list(calculator.calculator_tasks(50, 7, {"turns": 3}))
    assert made != list(calculator.calculator_tasks(50, 8, {"turns": 3}))
    for task in made:
        payload = calculator.read_payload(task["payload"])
        words = payload.question.removesuffix(" What is the result?")
        done = words.removeprefix("Start with ").replace("Multiply by", "*")
        done = done.replace("Add", "+").replace("Subtract", "-").split(". ")
        value = int(done[0].rstrip("."))
        for step in done[1:]:
            value = evaluate(f"({value}) {step.rstrip('.')}")
        assert value == payload.result
    file = tmp_path / "tasks.jsonl"
    words = ["calculator", "--count", "3", "--seed", "7", "--turns", "5", "--out", str(file)]
    assert tasks(words) == 0
    lines = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert [line["task_id"] for line in lines] == [f"calculator-7-{n}" for n in range(3)]
    assert calculator.read_payload(lines[0]["payload"]).turns == 5


NUMBERS = st.recursive(
    st.integers(0, 10**6).map(str),
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(NUMBERS)
def test_an_expression_is_worth_what_python_says(expression: str) -> None:
    try:
        found = evaluate(expression)
    except ToolError:
        assert len(expression) > 200 or abs(eval(expression)) > MOST or "*" in expression
    else:
        assert found == eval(expression)


@settings(deadline=None)
@given(st.text(max_size=250))
def test_any_text_is_a_number_or_a_word_to_the_model(text: str) -> None:
    with contextlib.suppress(ToolError):
        assert abs(evaluate(text)) <= MOST


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("2 ** 999", "only integers"),
        ("1 // 0", "division by zero"),
        ("9" * 31, "too large"),
        ("9" * 20 + "*" + "9" * 20, "too large"),
        ("(" * 150 + "1", "not an arithmetic expression"),
        ("-" * 100 + "1", "nested too deeply"),
        ("__import__('os')", "only integers"),
        ("1 +", "not an arithmetic expression"),
        ("", "not an arithmetic expression"),
        ("1" * 201, "longer than 200 characters"),
    ],
)
def test_what_the_calculator_cannot_do_it_says(expression: str, told: str) -> None:
    with pytest.raises(ToolError, match=told):
        evaluate(expression)
