"""Chat templates by the package `renderers`, which knows about thirty model families.

Job: adapt its render, parse and bridge to `Template`.
Does not know: models or files.
Invariants: only those three functions are used. What its bridge returns is trusted only where it
begins with prompt and completion, verbatim.
"""

import json
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from renderers import (
    ParsedToolCall,
    Renderer,
    RendererConfig,
    ToolCallParseStatus,
    create_renderer,
)

from .openai_form import message_forms, tool_forms
from .records import BadCall, Call, Message, ToolCall, ToolSpec
from .template import Ids

_WHY = {
    ToolCallParseStatus.INVALID_JSON: "the tool call is not JSON",
    ToolCallParseStatus.UNCLOSED_BLOCK: "the tool call has no end mark",
    ToolCallParseStatus.MISSING_NAME: 'the tool call has no "name"',
    ToolCallParseStatus.MALFORMED_STRUCTURE: "the tool call is malformed",
    ToolCallParseStatus.UNKNOWN_TOOL: "there is no such tool",
}
_CONFIGS: dict[str, Any] = {
    config.model_fields["name"].default: config for config in get_args(get_args(RendererConfig)[0])
}


class PlainTokenizer:
    """A `tokenizers.Tokenizer` as the package asks for one."""

    def __init__(self, tokenizer: Any, end_id: int, name: str) -> None:
        self._tokenizer = tokenizer
        self.name_or_path = name
        self.unk_token_id: int | None = None
        self.eos_token_id: int | None = end_id

    def encode(self, text: str, *_: Any, **__: Any) -> list[int]:
        """Return token IDs without any that a post-processor would add."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Any, *_: Any, skip_special_tokens: bool = False, **__: Any) -> str:
        """Return the text of token IDs."""
        ids = [int(number) for number in token_ids]
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the ID of a token, or those of a list; None for what is none."""
        if isinstance(tokens, str):
            return self._tokenizer.token_to_id(tokens)
        return [self._tokenizer.token_to_id(token) for token in tokens]


class RenderedTemplate:
    """A `Template` over a renderer."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self.stop_token_ids = tuple(renderer.get_stop_token_ids())

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Ids:
        """Return int32 [n]: the whole prompt."""
        forms: Any = message_forms(messages)
        told: Any = tool_forms(tools)
        rendered = self._renderer.render(forms, tools=told, add_generation_prompt=True)
        return np.array(rendered.token_ids, dtype=np.int32)

    def following(
        self,
        prompt: Ids,
        completion: Ids,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
    ) -> Ids | None:
        """Return int32 [n]: what follows a completion; None if the renderer cannot go on."""
        said = [*prompt.tolist(), *completion.tolist()]
        forms: Any = message_forms(messages)
        told: Any = tool_forms(tools)
        bridged = self._renderer.bridge_to_next_turn(
            said[: len(prompt)], said[len(prompt) :], forms, tools=told
        )
        if bridged is None or bridged.token_ids[: len(said)] != said:
            return None
        return np.array(bridged.token_ids[len(said) :], dtype=np.int32)

    def read(self, prompt: Ids, completion: Ids, tools: Sequence[ToolSpec]) -> Message:
        """Return what a completion says."""
        told: Any = tool_forms(tools)
        parsed = self._renderer.parse_response(
            completion.tolist(), tools=told, prompt_ids=prompt.tolist()
        )
        calls = tuple(_call(call) for call in parsed.tool_calls)
        return Message("assistant", parsed.content, parsed.reasoning_content or "", calls)


def renderer_names() -> list[str]:
    """Return the renderers that can go on from a turn, by name."""
    return [name for name in _CONFIGS if name not in {"auto", "default", "custom"}]


def make_renderer(name: str, tokenizer: Any) -> Renderer:
    """Return a renderer that keeps thinking.

    Raises: ValueError if the package has none of that name, or the tokenizer lacks its tokens.
    """
    if name not in renderer_names():
        raise ValueError(f"no renderer {name!r}; there are {', '.join(renderer_names())}")
    try:
        return create_renderer(tokenizer, _CONFIGS[name](thinking_retention="all"))
    except Exception as wrong:
        raise ValueError(f"renderer {name}: {type(wrong).__name__}: {wrong}") from wrong


def _call(call: ParsedToolCall) -> Call:
    if call.status is not ToolCallParseStatus.OK or not call.name:
        return BadCall(call.raw, _WHY.get(call.status, 'the tool call has no "name"'))
    arguments: Any = call.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return BadCall(call.raw, "the tool call's arguments are not JSON")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return BadCall(call.raw, "the tool call's arguments are not a JSON object")
    return ToolCall(call.name, arguments, call.id or "")
