"""What the agent loop asks of a chat template. Nothing here has behaviour.

Messages become token IDs, and a completion's token IDs a message; a completion is never encoded.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .records import Message, ToolSpec

Ids = npt.NDArray[np.int32]


class Template(Protocol):
    """Renders prompts and reads completions of one model family."""

    stop_token_ids: tuple[int, ...]
    """The tokens that end a completion; sampled, and part of it."""

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Ids:
        """Return int32 [n]: the whole prompt, up to where the assistant begins to write."""
        ...

    def following(
        self,
        prompt: Ids,
        completion: Ids,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
    ) -> Ids | None:
        """Return int32 [n]: what to append to prompt and completion so that the assistant goes on.

        It begins with an end of turn if the completion has none. None if prompt and completion
        cannot stay as they are.
        """
        ...

    def read(self, prompt: Ids, completion: Ids, tools: Sequence[ToolSpec]) -> Message:
        """Return what a completion says; a call that cannot be read is a BadCall, no error."""
        ...


def is_closed(completion: Ids, stop_token_ids: Sequence[int]) -> bool:
    """Whether a completion, int32 [n], ends with one of the tokens that end a turn."""
    return bool(len(completion)) and int(completion[-1]) in stop_token_ids
