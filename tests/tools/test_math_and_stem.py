"""The task kinds `math` and `stem`."""

import asyncio
from typing import Any

import pytest

from engine.errors import BoundaryError
from nodes.tasks import math, stem
from nodes.tasks.math_judge import Judge

from ..agent_kit import call
from .kinds import play

pytestmark = pytest.mark.timeout(300)
HANGS = "\\boxed{10^{10^{10^{10}}}}"


def verdicts(*pairs: tuple[str, str], **limits: Any) -> list[str]:
    async def ask() -> list[str]:
        judge = Judge(**limits)
        try:
            return [await judge.verdict(*pair) for pair in pairs]
        finally:
            await judge.close()

    return asyncio.run(ask())


def test_equal_answers_are_equal_however_they_are_written() -> None:
    found = verdicts(
        ("\\frac{1}{2}", "so \\boxed{0.5}"),
        ("42", "\\boxed{42}"),
        ("x^2+1", "\\boxed{1 + x^2}"),
        ("(1,2)", "\\boxed{(1, 2)}"),
        ("$3$", "\\boxed{3}"),
        ("42", "\\boxed{43}"),
        ("42", "none"),
        ("42", ""),
    )
    assert found == ["equal"] * 5 + ["different"] * 3


def test_an_answer_that_hangs_the_checker_is_too_hard_and_the_next_one_is_judged() -> None:
    assert verdicts(("42", HANGS), ("42", "\\boxed{42}"), cpu_s=2.0) == ["too hard", "equal"]


def test_a_right_answer_that_cannot_be_read_is_a_failure_and_no_verdict() -> None:
    with pytest.raises(BoundaryError, match="cannot be read") as raised:
        verdicts(("", "\\boxed{1}"))
    assert raised.value.boundary == "evaluator"


def test_a_judge_that_is_killed_is_a_failure_and_the_next_one_works() -> None:
    async def ask() -> None:
        judge = Judge()
        try:
            assert await judge.verdict("1", "\\boxed{1}") == "equal"
            assert judge._process is not None
            judge._process.kill()
            await judge._process.wait()
            assert await judge.verdict("1", "\\boxed{1}") == "equal"
            asked = asyncio.ensure_future(judge.verdict("42", HANGS))
            await asyncio.sleep(0)
            assert judge._process is not None
            judge._process.kill()
            with pytest.raises(BoundaryError):
                await asked
            assert await judge.verdict("1", "\\boxed{1}") == "equal"
        finally:
            await judge.close()

    asyncio.run(ask())


def test_only_the_last_box_counts() -> None:
    payload = {"problem": "What is 6 times 7?", "answer": "42"}
    assert play(math, payload, "\\boxed{41}, no: \\boxed{42}")[1].reward == 1.0
    assert play(math, payload, "\\boxed{42}, no: \\boxed{41}")[1].reward == 0.0
    assert play(math, payload, "I do not know.")[1].reward == 0.0


def test_a_problem_is_worked_out_with_tools_and_submitted() -> None:
    payload = {
        "problem": "What is 6 times 7?",
        "answer": "42",
        "talk": {"tools": ["bash", "think", "submit"]},
    }
    ran, found = play(
        math,
        payload,
        call("think", thought="multiply"),
        call("bash", command="echo $((6 * 7))"),
        call("submit", answer="42"),
        "Done.",
    )
    assert found.reward == 1.0
    assert [each["error"] for turn in ran.data["turns"] for each in turn["tools"]] == ["", "", ""]


CHOICE = {"question": "Which is a metal?", "choices": ["Neon", "Iron", "Carbon"], "answer": "B"}


@pytest.mark.parametrize(
    ("said", "reward"),
    [
        ("<answer>B</answer>", 1.0),
        ("<answer>(B) Iron</answer>", 1.0),
        ("<answer>iron</answer>", 1.0),
        ("<answer>B</answer><answer>A</answer>", 0.0),
        ("<answer>Bismuth</answer>", 0.0),
        ("B", 0.0),
        ("<answer>A or B</answer>", 0.0),
    ],
)
def test_a_choice_is_its_letter_or_its_text(said: str, reward: float) -> None:
    assert play(stem, CHOICE, said)[1].reward == reward


@pytest.mark.parametrize(
    ("answer", "said", "reward"),
    [
        ("9.81", "9.8 m/s^2", 1.0),
        ("9.81", "9.0", 0.0),
        ("6.022e23", "6.02e23", 1.0),
        ("1000", "1,000", 1.0),
        ("mitochondrion", "The Mitochondrion.", 1.0),
        ("mitochondrion", "mitochondria", 1.0),
        ("mitochondrion", "nucleus", 0.0),
        ("5", "", 0.0),
    ],
)
def test_a_short_answer_is_a_number_within_tolerance_or_its_words(
    answer: str, said: str, reward: float
) -> None:
    payload = {
        "question": "What?",
        "answer": answer,
        "also": ["mitochondria"] if answer[0] == "m" else [],
    }
    assert play(stem, payload, f"<answer>{said}</answer>")[1].reward == reward


def test_a_payload_whose_answer_is_no_choice_is_refused() -> None:
    with pytest.raises(BoundaryError, match="letter of ABC"):
        play(stem, {**CHOICE, "answer": "D"}, "x")
    with pytest.raises(BoundaryError, match=r"talk.search is empty"):
        play(stem, {**CHOICE, "talk": {"tools": ["search"]}}, "x")
