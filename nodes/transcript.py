"""A conversation with the policy, written down token by token as it happens.

Job: keep prompts and completions in order and turn them into a Trajectory and a record of each
turn.
Does not know: text, templates or who samples.
Invariants: nothing written is ever changed; a turn's prompt is everything before its completion,
verbatim. The mask is 1 exactly where the policy sampled; log-probabilities are 0 elsewhere.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.records import Trajectory

from .tasks import Generation

Ids = npt.NDArray[np.int32]


class Transcript:
    """Prompts and completions in order."""

    def __init__(self) -> None:
        self._ids: list[Ids] = []
        self._sampled: list[bool] = []
        self._logprobs: list[npt.NDArray[np.float32]] = []
        self._spans: list[Ids] = []
        self._length = 0
        self.turns: list[dict[str, Any]] = []

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self._length

    def token_ids(self) -> Ids:
        """Return int32 [n]: everything so far, the prompt of the next completion."""
        return np.concatenate(self._ids) if self._ids else np.zeros(0, dtype=np.int32)

    def prompt(self, token_ids: Ids) -> None:
        """Append tokens that nobody sampled, int32 [n]."""
        self._append(token_ids, np.zeros(len(token_ids), dtype=np.float32), sampled=False)

    def completion(self, generation: Generation, seconds: float) -> None:
        """Append what was sampled after everything so far, in one more turn."""
        start = self._length
        self._spans.append(generation.policy_spans + np.array([start, start, 0], dtype=np.int32))
        self._append(generation.token_ids, generation.logprobs, sampled=True)
        self.turns.append(
            {
                "prompt": [0, start],
                "completion": [start, self._length],
                "finish_reason": generation.finish_reason,
                "cached_tokens": generation.cached_tokens,
                "seconds": round(seconds, 6),
            }
        )

    def trajectory(self) -> Trajectory:
        """Return everything so far.

        Raises: ValueError if a completion's arrays do not fit each other.
        """
        lengths = [len(ids) for ids in self._ids]
        mask = np.repeat(np.array(self._sampled, dtype=np.uint8), lengths)
        logprobs = np.concatenate([*self._logprobs, np.zeros(0, dtype=np.float32)])
        spans = np.concatenate([np.zeros((0, 3), dtype=np.int32), *self._spans])
        return Trajectory(self.token_ids(), mask, logprobs, spans)

    def _append(self, ids: Ids, logprobs: npt.NDArray[np.float32], *, sampled: bool) -> None:
        self._ids.append(ids)
        self._sampled.append(sampled)
        self._logprobs.append(logprobs)
        self._length += len(ids)
