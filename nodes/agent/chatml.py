"""The template of the tokenizer that comes with rollmq: ChatML, tools as in `hermes`.

Job: messages to token IDs with `nodes.tokens`, completions to messages.
Does not know: who samples, or what tools do.
Invariants: text of tasks and tools never becomes a special token. What the model wrote before a new
segment is written again with the marks that it would have sampled.
"""

from collections.abc import Sequence

import numpy as np

from ..tokens import Tokens
from . import hermes
from .records import Message, ToolSpec
from .template import Ids, is_closed


class ChatmlTemplate:
    """A `Template` over `nodes.tokens`."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.stop_token_ids: tuple[int, ...] = (tokens.end,)

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Ids:
        """Return int32 [n]: the whole prompt; tools stand in its system message."""
        told = hermes.with_tools(messages, tools)
        return np.array(self._render(told) + self._tokens.assistant(), dtype=np.int32)

    def following(
        self,
        prompt: Ids,  # noqa: ARG002 - what was said never matters to ChatML
        completion: Ids,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],  # noqa: ARG002 - they stand in the opening
    ) -> Ids:
        """Return int32 [n]: what follows a completion."""
        closing = [] if is_closed(completion, self.stop_token_ids) else [self._tokens.end]
        line = self._tokens.encode("\n")
        after = self._render(messages) + self._tokens.assistant()
        return np.array([*closing, *line, *after], dtype=np.int32)

    def read(self, prompt: Ids, completion: Ids, tools: Sequence[ToolSpec]) -> Message:  # noqa: ARG002
        """Return what a completion says."""
        closed = is_closed(completion, self.stop_token_ids)
        return hermes.read_completion(
            self._tokens.decode(completion[:-1] if closed else completion)
        )

    def _render(self, messages: Sequence[Message]) -> list[int]:
        ids: list[int] = []
        for message in hermes.fold_tools(messages):
            if message.role == "assistant":
                ids += self._tokens.assistant(hermes.assistant_parts(message))
            else:
                ids += self._tokens.message(message.role, message.text)
        return ids
