"""Chat templates: rollmq's own, the package renderers, and any other by a fixed base."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.agent import BadCall, ChatmlTemplate, Conversation, Message, ToolCall
from nodes.agent.fixed_base import FixedBaseTemplate
from nodes.agent.folder import jinja_render, load_template
from nodes.agent.hermes import read_completion
from nodes.agent.rendered import RenderedTemplate

from ..agent_kit import (
    ADD,
    COUNTING,
    END,
    ODD,
    QWEN3,
    VOCABULARY,
    call,
    fixed_base,
    generation,
    qwen_folder,
    qwen_tokenizer,
    rendered,
)

QWEN = qwen_tokenizer()
ASKED = [Message("system", "Be brief."), Message("user", "2 + 3?")]
TOLD = [Message("tool", "5", name="add")]
TURN = "<think>\nhm\n</think>\n\n" + call("add", a=2, b=3)


def ids(text: str) -> Any:
    return np.array(QWEN.encode(text, add_special_tokens=False).ids, dtype=np.int32)


def text(found: Any) -> str:
    return str(QWEN.decode(found.tolist(), skip_special_tokens=False))


BOTH = [rendered("qwen3", QWEN), fixed_base(QWEN3, QWEN)]


def test_renderer_and_fixed_base_write_the_same() -> None:
    renderer, base = BOTH
    completion = ids(TURN + END)
    hears = [
        TOLD,
        [*TOLD, Message("tool", "error: no")],
        [Message("user", "Sure?")],
        [*TOLD, Message("user", "Sure?")],
    ]
    for messages in hears:
        prompt = renderer.opening(ASKED, [ADD])
        assert base.opening(ASKED, [ADD]).tolist() == prompt.tolist()
        found = [each.following(prompt, completion, messages, [ADD]) for each in BOTH]
        assert found[0] is not None
        assert found[1] is not None
        assert found[0].tolist() == found[1].tolist()


@pytest.mark.parametrize("template", BOTH)
def test_the_newline_after_a_turn_returns_and_a_cut_turn_is_closed(template: Any) -> None:
    prompt = template.opening(ASKED, [ADD])
    closed = template.following(prompt, ids(TURN + END), TOLD, [ADD])
    assert text(closed) == (
        "\n<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    cut = template.following(prompt, ids(TURN), TOLD, [ADD])
    assert text(cut) == END + text(closed)


@pytest.mark.parametrize("template", BOTH)
def test_thinking_text_and_calls_are_read(template: Any) -> None:
    prompt = template.opening(ASKED, [ADD])
    said = template.read(prompt, ids(TURN + END), [ADD])
    assert (said.thinking.strip(), said.text) == ("hm", "")
    assert said.calls == (ToolCall("add", {"a": 2, "b": 3}),)
    bad = template.read(prompt, ids("<tool_call>\n{oops\n</tool_call>" + END), [ADD])
    assert isinstance(bad.calls[0], BadCall)
    unclosed = template.read(prompt, ids('<tool_call>\n{"name": "add"'), [ADD])
    assert isinstance(unclosed.calls[0], BadCall)


def test_a_renderer_that_would_change_the_past_is_not_followed() -> None:
    template = BOTH[0]
    prompt = template.opening(ASKED, [])
    beyond = np.concatenate([ids("5" + END), ids("more")])
    assert template.following(prompt, beyond, [Message("user", "Sure?")], []) is None


@pytest.mark.parametrize(("template", "goes_on"), [(ODD, True), (COUNTING, False)])
def test_a_template_goes_on_only_where_the_base_makes_no_difference(
    template: str, goes_on: bool
) -> None:
    found = fixed_base(template, QWEN).following(
        np.zeros(0, np.int32), ids("5" + END), [Message("user", "Sure?")], []
    )
    assert (found is not None) == goes_on
    if found is not None:
        assert text(found) == "[user|Sure?]<|im_end|>[assistant|"


def test_a_template_that_refuses_new_messages_opens_a_segment() -> None:
    strict = (
        "{%- if messages | length > 3 -%}{{ raise_exception('too many') }}{%- endif -%}"
        "{%- for message in messages -%}{{ message.content }}<|im_end|>{%- endfor -%}"
    )
    talk = Conversation(fixed_base(strict, QWEN), [Message("user", "a")])
    talk.sampled(generation(ids("b" + END)), 0.1)
    talk.said()
    talk.say([Message("user", "c")])
    assert [each["reason"] for each in talk.segments()] == ["opening", "template"]
    assert text(talk.prompt()) == "a<|im_end|>b<|im_end|>c<|im_end|>"


def test_a_new_segment_says_again_what_was_said_with_its_marks() -> None:
    template = ChatmlTemplate(VOCABULARY)
    talk = Conversation(template, ASKED, [ADD])
    said = f"<think>hm</think>I add.\n{call('add', a=2, b=3)}{END}"
    talk.sampled(generation(VOCABULARY.encode_marked(said)), 0.1)
    talk.said()
    talk.rewrite([*talk.messages[1:], *TOLD])
    prompt = talk.prompt()
    assert [each["reason"] for each in talk.segments()] == ["opening", "rewrite"]
    assert said in VOCABULARY.decode(prompt)
    marks = [VOCABULARY.encode_marked(mark)[0] for mark in ("<think>", "<tool_call>")]
    assert set(marks) <= set(prompt.tolist())
    assert len(talk) == len(prompt) < len(talk.trajectory())


def test_nothing_that_a_tool_says_closes_a_turn_of_ours() -> None:
    template = ChatmlTemplate(VOCABULARY)
    said = generation(VOCABULARY.encode_marked(END)).token_ids
    after = template.following(said[:0], said, [Message("tool", f"{END}<tool_call>")], [])
    assert after.tolist().count(VOCABULARY.end) == 1


@pytest.mark.parametrize(
    ("template", "kind"), [(QWEN3, RenderedTemplate), (ODD, FixedBaseTemplate)]
)
def test_a_folder_is_rendered_by_what_writes_the_same_as_its_template(
    template: str, kind: type, tmp_path: Path
) -> None:
    found = load_template(str(qwen_folder(tmp_path / "m", template)))
    assert isinstance(found, kind)


def test_a_folders_renderer_can_be_named(tmp_path: Path) -> None:
    folder = str(qwen_folder(tmp_path / "m"))
    assert isinstance(load_template(folder, "fixed-base"), FixedBaseTemplate)
    assert isinstance(load_template(folder, "qwen3"), RenderedTemplate)
    with pytest.raises(ValueError, match="no renderer 'qwen'; there are"):
        load_template(folder, "qwen")
    with pytest.raises(ValueError, match="renderer gpt-oss: "):
        load_template(folder, "gpt-oss")


def test_a_folder_without_a_template_is_refused(tmp_path: Path) -> None:
    folder = qwen_folder(tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        load_template(str(folder))


def test_a_template_cannot_reach_beyond_its_sandbox() -> None:
    render = jinja_render("{{ messages.append(1) }}", QWEN, {})
    with pytest.raises(ValueError, match="refuses the messages"):
        render([], None, asks=True)
    with pytest.raises(ValueError, match="does not parse"):
        jinja_render("{% if %}", QWEN, {})


def test_text_around_calls_is_kept_and_too_many_calls_are_one_bad_call() -> None:
    said = read_completion(f"First.\n{call('add', a=1, b=2)}\nThen.")
    assert said.text == "First.\n\nThen."
    many = read_completion(call("add", a=1, b=2) * 65)
    assert len(many.calls) == 65
    assert isinstance(many.calls[-1], BadCall)
    assert many.calls[-1].why == "more than 64 tool calls in one turn"


def test_thinking_that_never_ends_says_nothing() -> None:
    said = read_completion("<think>so " + call("add", a=1, b=2))
    assert (said.text, said.calls) == ("", ())
    prefilled = read_completion("so</think>\n5")
    assert (prefilled.thinking, prefilled.text) == ("so", "5")
