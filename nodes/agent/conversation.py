"""A conversation as messages and as token IDs at once; the IDs are the truth.

Job: keep each prompt a verbatim continuation of the last prompt and completion, or open a new
segment and say why.
Does not know: the model, tools' code, time.
Invariants: within a segment the prompt only grows at its end. A completion's token IDs are kept as
they were sampled and never encoded. A segment is opened for one of three reasons: `template` (the
chat template cannot go on from here), `truncation` (nor from a completion that was cut off),
`rewrite` (the agent changed what was said).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.trajectories import Trajectory

from ..tasks import Generation
from ..transcript import NO_IDS, Reason, Transcript
from .records import Message, ToolSpec
from .template import Ids, Template, is_closed


class Conversation:
    """What was said so far, and the prompt of the next completion."""

    def __init__(
        self, template: Template, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()
    ) -> None:
        self._template = template
        self._tools = tuple(tools)
        self._transcript = Transcript()
        self._parts: list[Ids] = []  # the last completion, in pieces if it was aborted
        self._before = NO_IDS  # its prompt
        self._is_open = False
        self.messages = list(messages)
        self._transcript.prompt(template.opening(self.messages, self._tools))

    def __len__(self) -> int:
        """Return the number of tokens of the open segment: those of the next prompt."""
        return self._transcript.prompt_length

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The record of each turn, as it goes into a stage's data."""
        return self._transcript.turns

    def prompt(self) -> Ids:
        """Return int32 [n]: the prompt of the next completion."""
        return self._transcript.token_ids()

    def sampled(self, generation: Generation, seconds: float) -> None:
        """Append a completion of `prompt()`, or the next piece of one that was aborted."""
        if self._is_open:
            self._transcript.resumed(generation, seconds)
            self._parts.append(generation.token_ids)
            return
        self._before = self._transcript.token_ids()
        self._transcript.completion(generation, seconds)
        self._parts = [generation.token_ids]
        self._is_open = True

    def said(self) -> Message:
        """End the model's turn; return what it said."""
        self._is_open = False
        said = self._template.read(self._before, self._completion(), self._tools)
        self.messages.append(said)
        return said

    def say(self, messages: Sequence[Message]) -> None:
        """Append messages to the model, after its turn."""
        self.messages.extend(messages)
        completion = self._completion()
        ids = self._template.following(self._before, completion, messages, self._tools)
        if ids is not None:
            self._transcript.prompt(ids)
        elif is_closed(completion, self._template.stop_token_ids):
            self._reopen("template")
        else:
            self._reopen("truncation")

    def rewrite(self, messages: Sequence[Message]) -> None:
        """Go on from other messages, in a segment of their own."""
        self.messages = list(messages)
        self._reopen("rewrite")

    def used(self, tool: str, seconds: float, error: str) -> None:
        """Note a tool call of the last turn; `error` is empty if the tool answered."""
        self._transcript.used(tool, seconds, error)

    def segments(self) -> list[dict[str, Any]]:
        """Return start, end and reason of each segment, as they go into a stage's data."""
        return self._transcript.segments()

    def segment_array(self) -> npt.NDArray[np.int32]:
        """Return int32 [k, 2]: start and end of each segment of the trajectory, end exclusive."""
        edges = [(segment["start"], segment["end"]) for segment in self.segments()]
        return np.array(edges, dtype=np.int32)

    def trajectory(self) -> Trajectory:
        """Return everything so far, the segments one after the other."""
        return self._transcript.trajectory()

    def _completion(self) -> Ids:
        return np.concatenate([NO_IDS, *self._parts])

    def _reopen(self, reason: Reason) -> None:
        self._transcript.segment(reason)
        self._transcript.prompt(self._template.opening(self.messages, self._tools))
