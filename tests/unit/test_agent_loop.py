"""The agent loop, with a model that says what a test wrote."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.errors import BoundaryError
from nodes.agent import (
    ChatmlTemplate,
    Conversation,
    Limits,
    Message,
    Result,
    Tool,
    ToolError,
    converse,
)

from ..agent_kit import ADD, END, VOCABULARY, ScriptedModel, call, context, generation

TEMPLATE = ChatmlTemplate(VOCABULARY)
ASKED = [Message("system", "Be brief."), Message("user", "2 + 3?")]
LIMITS = Limits(wall_s=60.0)
ANSWER = "5" + END
CALL = call("add", a=2, b=3) + END


async def add(a: int, b: int) -> str:
    if a < 0:
        raise ToolError("no negative numbers")
    return str(a + b)


ADDING = Tool(ADD.name, ADD.description, ADD.parameters, add)


def talk(
    model: ScriptedModel,
    limits: Limits = LIMITS,
    tools: tuple[Tool, ...] = (ADDING,),
    where: Any = None,
    **more: Any,
) -> Result:
    where = where or context(model)
    return asyncio.run(converse(where, TEMPLATE, tools, limits, ASKED, **more))


def heard(result: Result) -> list[str]:
    return [each.text for each in result.conversation.messages if each.role == "tool"]


def test_a_tool_is_called_and_its_answer_told() -> None:
    model = ScriptedModel(CALL, ANSWER)
    result = talk(model)
    assert (result.outcome, result.limit, result.text) == (None, "", "5")
    assert heard(result) == ["5"]
    first, second = model.prompts
    said = [*first.tolist(), *VOCABULARY.encode_marked(CALL)]
    assert second[: len(said)].tolist() == said
    assert VOCABULARY.decode(second[len(said) :]) == (
        "\n<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert result.conversation.turns[0]["tools"][0]["name"] == "add"
    assert model.released == ["r.2"]


def test_several_calls_are_answered_in_order() -> None:
    model = ScriptedModel(call("add", a=1, b=1) + call("add", a=2, b=2) + END, ANSWER)
    assert heard(talk(model)) == ["2", "4"]


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("<tool_call>\n{oops\n</tool_call>", "error: the tool call is not JSON: "),
        ("<tool_call>\n[1]\n</tool_call>", "error: the tool call is not a JSON object"),
        ('<tool_call>{"name": 1}</tool_call>', 'error: the tool call has no "name"'),
        ('<tool_call>{"name": "add", "arguments": 1}</tool_call>', "error: the tool call's"),
        ('<tool_call>{"name": "add"', "error: the tool call has no </tool_call>"),
        (r'<tool_call>{"name": "\ud800"}</tool_call>', "error: the tool call is not JSON: "),
        (call("subtract", a=1), "error: no tool 'subtract'; there are: add"),
        (call("add", a=1), "error: arguments: 'b' is a required property"),
        (call("add", a="1", b=2), "error: arguments.a: '1' is not of type 'integer'"),
        (call("add", a=1, b=2, c=3), "error: arguments: Additional properties"),
        (call("add", a=-1, b=2), "error: no negative numbers"),
    ],
)
def test_what_the_model_did_wrong_is_told_to_it(says: str, told: str) -> None:
    result = talk(ScriptedModel(says + END, ANSWER))
    assert result.outcome is None
    assert heard(result)[0].startswith(told)
    assert result.conversation.turns[0]["tools"][0]["error"].startswith(told[7:])


def test_a_call_inside_thinking_is_none() -> None:
    result = talk(ScriptedModel(f"<think>{CALL[: -len(END)]}</think>\n5{END}"))
    assert heard(result) == []
    assert result.text == "5"


def failing(error: Exception) -> tuple[Tool, ...]:
    async def fail(**_: Any) -> str:
        raise error

    return (replace(ADDING, call=fail),)


def test_what_a_tool_stands_on_fails_the_rollout_and_not_the_model() -> None:
    model = ScriptedModel(CALL)
    with pytest.raises(BoundaryError, match="gone") as raised:
        talk(model, tools=failing(BoundaryError("sandbox", "gone")))
    assert raised.value.boundary == "sandbox"
    assert model.released == ["r.2"]


def test_a_bug_in_a_tool_is_no_answer_to_the_model() -> None:
    with pytest.raises(BoundaryError, match="add: KeyError: 'x'") as raised:
        talk(ScriptedModel(CALL), tools=failing(KeyError("x")))
    assert raised.value.boundary == "tool"


def test_a_backend_that_fails_is_no_outcome() -> None:
    model = ScriptedModel(CALL, BoundaryError("backend", "nobody there"))
    where = context(model)
    with pytest.raises(BoundaryError, match="nobody there"):
        talk(model, where=where)
    assert model.released == ["r.2"]
    assert where.used == {"turns": 1, "tokens": len(VOCABULARY.encode_marked(CALL))}


@pytest.mark.parametrize(
    ("limits", "limit", "turns"),
    [
        (replace(LIMITS, turns=2), "turns", 2),
        (replace(LIMITS, turn_tokens=5), "turn_tokens", 1),
        (replace(LIMITS, tokens=30), "tokens", 2),
        (replace(LIMITS, context_tokens=330), "context", 2),
    ],
)
def test_each_limit_ends_the_conversation_as_truncated(
    limits: Limits, limit: str, turns: int
) -> None:
    model = ScriptedModel(*[CALL] * 4)
    result = talk(model, limits)
    assert (result.outcome, result.limit) == ("truncated", limit)
    assert len(result.conversation.turns) == turns
    asked = [(len(p), s.max_tokens) for p, s in zip(model.prompts, model.samplings, strict=True)]
    assert all(length + most <= limits.context_tokens for length, most in asked)
    assert int(result.conversation.trajectory().loss_mask.sum()) <= limits.tokens


def test_a_conversation_without_a_turn_is_a_failure_and_nothing_to_reward() -> None:
    with pytest.raises(BoundaryError, match="no room for a turn: context in") as raised:
        talk(ScriptedModel(CALL), replace(LIMITS, context_tokens=100))
    assert not raised.value.retry

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    model = ScriptedModel(never)
    with pytest.raises(BoundaryError, match=r"no completion in 0\.05 s") as raised:
        talk(model, replace(LIMITS, wall_s=0.05))
    assert (raised.value.boundary, raised.value.retry) == ("backend", True)
    assert model.released == ["r.2"]


def test_what_no_text_can_hold_reaches_the_model_as_something_else() -> None:
    async def odd(**_: Any) -> str:
        return "a\udcffb"

    result = talk(ScriptedModel(CALL, ANSWER), tools=(replace(ADDING, call=odd),))
    assert heard(result) == ["a?b"]


def test_a_backend_that_clips_to_its_own_context_is_the_limit_context() -> None:
    result = talk(ScriptedModel(generation(VOCABULARY.encode("so"), "length")))
    assert (result.outcome, result.limit) == ("truncated", "context")


def test_a_turn_that_is_cut_off_can_be_closed_and_gone_on_from() -> None:
    limits = replace(LIMITS, turn_tokens=40, goes_on_when_cut=True)
    long = "so " * 60
    model = ScriptedModel(long, ANSWER)
    result = talk(model, limits)
    assert (result.outcome, result.text) == (None, "5")
    trajectory = result.conversation.trajectory()
    _, end = result.conversation.turns[0]["completion"]
    assert trajectory.token_ids[end] == VOCABULARY.end
    assert trajectory.loss_mask[end] == 0
    assert [each["reason"] for each in result.conversation.segments()] == ["opening"]


def test_wall_time_ends_as_a_timeout_and_keeps_every_turn_aligned() -> None:
    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    model = ScriptedModel(CALL, never)
    where = context(model)
    result = talk(model, replace(LIMITS, wall_s=1.0), where=where)
    assert (result.outcome, result.limit) == ("agent_timeout", "wall")
    output = result.output()
    start, end = output.data["turns"][0]["completion"]
    assert output.trajectory.loss_mask.sum() == end - start == where.used["tokens"]
    assert (output.trajectory.logprobs[start:end] < 0).all()
    assert model.released == ["r.2"]


def test_a_timeout_of_the_backend_itself_is_not_the_agents() -> None:
    with pytest.raises(TimeoutError, match="of its own"):
        talk(ScriptedModel(TimeoutError("of its own")))


def test_a_cancel_releases_the_session_and_counts_what_was_sampled() -> None:
    asked = asyncio.Event()

    async def never(*_: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    model = ScriptedModel(CALL, never)
    where = context(model)

    async def scenario() -> None:
        going = asyncio.create_task(converse(where, TEMPLATE, [ADDING], LIMITS, ASKED))
        await asyncio.wait_for(asked.wait(), 60)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going

    asyncio.run(scenario())
    assert model.released == ["r.2"]
    assert where.used == {"turns": 1, "tokens": len(VOCABULARY.encode_marked(CALL))}


def test_a_turn_that_an_update_aborted_goes_on_where_it_stopped() -> None:
    whole = VOCABULARY.encode_marked(CALL)
    model = ScriptedModel(
        generation(whole[:6], "abort", version=1, queue_s=0.25),
        generation([], "abort", version=2),
        generation(whole[6:], "stop", version=2, queue_s=0.5, cached_tokens=9, backend="b"),
        ANSWER,
    )
    where = context(model)
    result = talk(model, where=where)
    first, again, third, _ = model.prompts
    assert again.tolist() == third.tolist() == [*first.tolist(), *whole[:6]]
    assert heard(result) == ["5"]
    turn = result.conversation.turns[0]
    assert (turn["aborts"], turn["finish_reason"], turn["queue_s"]) == (2, "stop", 0.75)
    assert (turn["backend"], turn["cached_tokens"]) == ("b", 0)
    start, end = turn["completion"]
    assert end - start == len(whole)
    spans = result.conversation.trajectory().policy_spans.tolist()
    assert spans[:2] == [[start, start + 6, 1], [start + 6, end, 2]]
    assert where.used["turns"] == 2
    assert model.samplings[2].max_tokens == LIMITS.turn_tokens - 6


def test_a_turn_that_is_aborted_for_ever_fails() -> None:
    model = ScriptedModel(*[generation([], "abort")] * 20)
    with pytest.raises(BoundaryError, match="aborted 16 times"):
        talk(model)


def test_a_reply_goes_on_until_it_has_nothing_to_say() -> None:
    async def reply(said: Conversation) -> list[Message]:
        return [Message("user", "Sure?")] if len(said.turns) < 3 else []

    result = talk(ScriptedModel(ANSWER, ANSWER, ANSWER), reply=reply)
    assert (result.outcome, len(result.conversation.turns)) == (None, 3)


def test_the_output_says_how_it_went() -> None:
    output = talk(ScriptedModel(CALL, ANSWER)).output(more=1)
    assert set(output.data) == {"turns", "segments", "limit", "text", "more"}
    assert output.arrays["segments"].tolist() == [[0, len(output.trajectory)]]
    assert output.data["segments"] == [
        {"start": 0, "end": len(output.trajectory), "reason": "opening"}
    ]


def test_tools_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="share a name: add, add"):
        talk(ScriptedModel(), tools=(ADDING, ADDING))
    with pytest.raises(ValueError, match="tool add: its parameters are no schema"):
        talk(ScriptedModel(), tools=(replace(ADDING, parameters={"type": 1}),))


def test_an_answer_that_is_too_long_is_cut_and_says_so() -> None:
    async def long(**_: Any) -> str:
        return "x" * 20_001

    result = talk(
        ScriptedModel(CALL, ANSWER),
        replace(LIMITS, context_tokens=100_000),
        tools=(replace(ADDING, call=long),),
    )
    assert heard(result)[0].endswith("x\n[1 characters left out]")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logprobs": np.array([-1, np.nan], np.float32)}, "missing, not finite or above 0"),
        ({"logprobs": np.array([-1, -9999], np.float32)}, "missing, not finite or above 0"),
        ({"logprobs": np.array([-1, 0.5], np.float32)}, "missing, not finite or above 0"),
        ({"logprobs": np.array([-1], np.float32)}, "2,.* token IDs but .1,. log-prob"),
        ({"logprobs": np.array([-1, -1])}, "arrays are int32, int64, int32"),
        ({"policy_spans": np.array([[0, 1, 3]], np.int32)}, "do not cover 2 tokens"),
        ({"policy_spans": np.array([[0, 3, 3], [3, 2, 4]], np.int32)}, "do not cover 2 tokens"),
        ({"policy_spans": np.array([[0, 2, 3], [2, 2, 4]], np.int32)}, "do not cover 2 tokens"),
        ({"policy_spans": np.zeros((2, 2), np.int32)}, "arrays are"),
    ],
)
def test_a_completion_whose_arrays_do_not_fit_is_none(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(generation([1, 2]), **changes)
