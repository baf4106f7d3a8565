"""The simulator's turns where a calculator is offered."""

import json
import random
import re

import pytest

from nodes import tokens
from nodes.backends.simulator.scripted import TextScript, Wish
from nodes.backends.simulator.tool_calls import MOST_ERRORS, next_turn

VOCABULARY = tokens.load()
QUESTION = "Start with 12. Add 30. Multiply by 3. Subtract 14. What is the result?"
OFFER = (
    "Use the calculator.\n\n# Tools\n\n<tools>\n"
    '{"type": "function", "function": {"name": "calculator", "parameters": {}}}\n</tools>'
)


def prompt(*turns: tuple[str, str]) -> str:
    spoken = [("system", OFFER), ("user", QUESTION), *turns]
    text = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in spoken)
    return text + "<|im_start|>assistant\n"


def response(text: str) -> tuple[str, str]:
    return "user", f"<tool_response>\n{text}\n</tool_response>"


def chance() -> random.Random:
    return random.Random(1)


def called(turn: str | None) -> str:
    assert turn is not None
    found = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", turn)
    assert found is not None
    call = json.loads(found[1])
    assert call["name"] == "calculator"
    return str(call["arguments"]["expression"])


def test_each_turn_calls_the_next_step_and_the_last_gives_the_answer() -> None:
    turns: list[tuple[str, str]] = []
    expressions = []
    for result in ("42", "126", "112"):
        turn = next_turn(prompt(*turns), chance(), is_right=True)
        expressions.append(called(turn))
        turns += [("assistant", turn or ""), response(result)]
    assert expressions == ["12 + 30", "42 * 3", "126 - 14"]
    assert next_turn(prompt(*turns), chance(), is_right=True) == "<answer>112</answer>"


def test_a_step_that_failed_is_called_again_and_not_for_ever() -> None:
    turns = [("assistant", "<tool_call>"), response("error: no JSON")]
    assert called(next_turn(prompt(*turns), chance(), is_right=True)) == "12 + 30"
    turn = next_turn(prompt(*turns * MOST_ERRORS), chance(), is_right=True)
    assert turn == "<answer>12</answer>"


def test_turns_that_are_not_right_are_wrong_in_every_way() -> None:
    source = random.Random(3)
    turns = [next_turn(prompt(), source, is_right=False) or "" for _ in range(40)]
    assert len(set(turns)) == 3
    assert any("12 + 300" in turn for turn in turns)
    results = [("assistant", ""), response("42"), response("126"), response("112")]
    assert next_turn(prompt(*results), source, is_right=False) != "<answer>112</answer>"


@pytest.mark.parametrize("offer", ["You are helpful.", "<tools>\n{}\n</tools>"])
def test_no_tool_is_called_that_is_not_offered(offer: str) -> None:
    assert next_turn(prompt().replace(OFFER, offer), chance(), is_right=True) is None


def test_the_text_script_writes_marks_as_special_tokens() -> None:
    ids = VOCABULARY.opening([("system", OFFER), ("user", QUESTION)])
    wish = Wish("s", None, 1000, 1.0, (VOCABULARY.end,))
    completion = TextScript(VOCABULARY, 1.0).complete(ids, wish)
    text = VOCABULARY.decode(completion.token_ids)
    assert called(text.removesuffix("<|im_end|>")) == "12 + 30"
    assert completion.token_ids[0] == VOCABULARY.encode_marked("<tool_call>")[0]
    assert completion.finish_reason == "stop"
