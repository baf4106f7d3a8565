"""Any chat template, by the fixed-base method: only what is new is ever rendered again.

Job: find the tokens that a template puts after an assistant's turn, by rendering the new messages
behind a short base conversation and cutting after the end token of the base's last turn.
Does not know: the template's language; `Render` hides it.
Invariants: what was said is not rendered again. The cut is trusted only if two bases with different
texts give the same tokens behind it; else the template cannot go on from here. Cutting at the end
token brings back the newline that templates write behind it and no model samples.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from . import hermes
from .openai_form import Form, message_forms, tool_forms
from .records import Message, ToolCall, ToolSpec
from .template import Ids, is_closed

BASES = ("Yes.", "On the contrary: no, 7.")


class Render(Protocol):
    """A chat template: messages to token IDs."""

    def __call__(self, messages: list[Form], tools: list[Form] | None, *, asks: bool) -> list[int]:
        """Return token IDs; `asks` adds the start of the assistant's turn.

        Raises: ValueError if the template refuses the messages.
        """
        ...


class FixedBaseTemplate:
    """A `Template` over any chat template whose turns end with one token.

    decode: token IDs to text, special tokens as their marks. stop_token_ids: the first ends a turn.
    """

    def __init__(
        self,
        render: Render,
        decode: Callable[[list[int]], str],
        stop_token_ids: Sequence[int],
    ) -> None:
        self._render = render
        self._decode = decode
        self.stop_token_ids = tuple(stop_token_ids)
        self._end = self.stop_token_ids[0]

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Ids:
        """Return int32 [n]: the whole prompt.

        Raises: ValueError if the template refuses the messages.
        """
        forms = message_forms(messages)
        return np.array(self._render(forms, tool_forms(tools), asks=True), dtype=np.int32)

    def following(
        self,
        prompt: Ids,  # noqa: ARG002 - the base stands for what was said
        completion: Ids,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
    ) -> Ids | None:
        """Return int32 [n]: what follows a completion; None if the template has no such point."""
        found = [self._behind(text, messages, tools) for text in BASES]
        if found[0] is None or found[0] != found[1]:
            return None
        closed = is_closed(completion, self.stop_token_ids)
        return np.array([*([] if closed else [self._end]), *found[0]], dtype=np.int32)

    def read(self, prompt: Ids, completion: Ids, tools: Sequence[ToolSpec]) -> Message:  # noqa: ARG002
        """Return what a completion says, its calls in the format of Hermes."""
        closed = is_closed(completion, self.stop_token_ids)
        return hermes.read_completion(self._decode(completion[: len(completion) - closed].tolist()))

    def _behind(
        self, text: str, messages: Sequence[Message], tools: Sequence[ToolSpec]
    ) -> list[int] | None:
        base = _base(text, messages)
        told = tool_forms(tools)
        try:
            closed = self._render(message_forms(base), told, asks=False).count(self._end)
            whole = self._render(message_forms([*base, *messages]), told, asks=True)
        except ValueError:
            return None
        ends = [place for place, number in enumerate(whole) if number == self._end]
        return whole[ends[closed - 1] + 1 :] if 0 < closed <= len(ends) else None


def _base(text: str, messages: Sequence[Message]) -> list[Message]:
    """Return a question and a turn that `messages` may follow: with a call for each answer."""
    answers = [message for message in messages if message.role == "tool"]
    calls = tuple(ToolCall(each.name or "tool", {}, each.call_id) for each in answers)
    return [Message("user", "Well?"), Message("assistant", text, calls=calls)]
