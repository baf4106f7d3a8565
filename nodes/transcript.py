"""A conversation with the policy, written down token by token as it happens.

Job: keep prompts and completions in order and turn them into a Trajectory and a record of each
turn.
Does not know: text, templates or who samples.
Invariants: nothing written is ever changed; a turn's prompt is everything of its segment before its
completion, verbatim. A segment is opened with a reason only. The mask is 1 exactly where the policy
sampled; log-probabilities are 0 elsewhere.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from engine.trajectories import Trajectory

from .tasks import Generation

Ids = npt.NDArray[np.int32]
Reason = Literal["opening", "template", "rewrite", "truncation"]
NO_IDS: Ids = np.zeros(0, dtype=np.int32)


class Transcript:
    """Prompts and completions in order."""

    def __init__(self) -> None:
        self._ids: list[Ids] = []
        self._sampled: list[bool] = []
        self._logprobs: list[npt.NDArray[np.float32]] = []
        self._spans: list[Ids] = []
        self._length = 0
        self._segment_part = 0  # the first of _ids that belongs to the open segment
        self._segments: list[tuple[int, Reason]] = [(0, "opening")]
        self.turns: list[dict[str, Any]] = []

    def __len__(self) -> int:
        """Return the number of tokens, of all segments."""
        return self._length

    def token_ids(self) -> Ids:
        """Return int32 [n]: the open segment so far, the prompt of the next completion."""
        return np.concatenate([NO_IDS, *self._ids[self._segment_part :]])

    @property
    def prompt_length(self) -> int:
        """The number of tokens of the open segment."""
        return self._length - self._segments[-1][0]

    def segment(self, reason: Reason) -> None:
        """Begin again with an empty prompt; what was written stays, as a segment of its own."""
        self._segment_part = len(self._ids)
        self._segments.append((self._length, reason))

    def segments(self) -> list[dict[str, Any]]:
        """Return where each segment starts and ends, and why it was opened."""
        starts = [start for start, _ in self._segments]
        ends = [*starts[1:], self._length]
        return [
            {"start": start, "end": end, "reason": reason}
            for (start, reason), end in zip(self._segments, ends, strict=True)
        ]

    def prompt(self, token_ids: Ids) -> None:
        """Append tokens that nobody sampled, int32 [n]."""
        self._append(token_ids, np.zeros(len(token_ids), dtype=np.float32), sampled=False)

    def completion(self, generation: Generation, seconds: float) -> None:
        """Append what was sampled after everything so far, in one more turn."""
        start = self._length
        self._sample(generation)
        self.turns.append(
            {
                "segment": len(self._segments) - 1,
                "prompt": [self._segments[-1][0], start],
                "completion": [start, self._length],
                "finish_reason": generation.finish_reason,
                "cached_tokens": generation.cached_tokens,
                "aborts": int(generation.finish_reason == "abort"),
                "seconds": round(seconds, 6),
                "queue_s": round(generation.queue_s, 6),
                "prefill_s": round(generation.prefill_s, 6),
                "decode_s": round(generation.decode_s, 6),
                "backend": generation.backend,
                "tools": [],
            }
        )

    def resumed(self, generation: Generation, seconds: float) -> None:
        """Append what was sampled after a completion that was aborted, in the same turn."""
        self._sample(generation)
        turn = self.turns[-1]
        turn["completion"][1] = self._length
        turn["finish_reason"] = generation.finish_reason
        turn["aborts"] += int(generation.finish_reason == "abort")
        turn["backend"] = generation.backend or turn["backend"]
        turn["seconds"] = round(turn["seconds"] + seconds, 6)
        for name in ("queue_s", "prefill_s", "decode_s"):
            turn[name] = round(turn[name] + getattr(generation, name), 6)

    def used(self, tool: str, seconds: float, error: str) -> None:
        """Note a tool call of the last turn; `error` is empty if the tool answered."""
        used = {"name": tool, "seconds": round(seconds, 6), "error": error}
        self.turns[-1]["tools"].append(used)

    def trajectory(self) -> Trajectory:
        """Return everything so far, all segments one after the other."""
        lengths = [len(ids) for ids in self._ids]
        mask = np.repeat(np.array(self._sampled, dtype=np.uint8), lengths)
        logprobs = np.concatenate([np.zeros(0, dtype=np.float32), *self._logprobs])
        spans = np.concatenate([np.zeros((0, 3), dtype=np.int32), *self._spans])
        return Trajectory(np.concatenate([NO_IDS, *self._ids]), mask, logprobs, spans)

    def _sample(self, generation: Generation) -> None:
        start = self._length
        spans = generation.policy_spans
        filled = spans[spans[:, 1] > spans[:, 0]]
        self._spans.append(filled + np.array([start, start, 0], dtype=np.int32))
        self._append(generation.token_ids, generation.logprobs, sampled=True)

    def _append(self, ids: Ids, logprobs: npt.NDArray[np.float32], *, sampled: bool) -> None:
        self._ids.append(ids)
        self._sampled.append(sampled)
        self._logprobs.append(logprobs)
        self._length += len(ids)
