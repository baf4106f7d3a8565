"""Whether the arrays of a completion fit together.

Job: read the three arrays of a `generated` and refuse those that a trainer could not learn from.
Does not know: who asked, and what becomes of a refusal.
Invariants: what leaves `read_completion` is int32 [n], float32 [n] and int32 [k, 3]; every
log-probability is finite, not above 0, and no stand-in for a missing one; spans, where there are
any, cover the completion without a gap.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from engine.errors import RemoteProtocolError
from engine.wire import read_body

from .messages import Generated

SENTINEL = -9999.0  # what vLLM writes where it has no log-probability
Completion = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int32]]


def read_completion(message: Generated, body: Sequence[Any]) -> Completion:
    """Return token IDs int32 [n], log-probabilities float32 [n] and policy spans int32 [k, 3].

    Raises: ValueError saying what does not fit.
    """
    try:
        _, found = read_body(message.buffers, body)
    except RemoteProtocolError as wrong:
        raise ValueError(str(wrong)) from None
    if set(found) != {"token_ids", "logprobs", "policy_spans"}:
        raise ValueError(f"the answer has buffers {sorted(found)}")
    token_ids, logprobs, spans = found["token_ids"], found["logprobs"], found["policy_spans"]
    _expect_arrays(token_ids, logprobs, spans)
    _expect_spans(spans, len(token_ids))
    return token_ids, logprobs, spans


def sampled_tokens(message: Generated) -> int:
    """Return how many tokens a completion has by its own header; 0 if it does not say."""
    for buffer in message.buffers:
        if buffer.name == "token_ids" and buffer.shape:
            return buffer.shape[0]
    return 0


def _expect_arrays(token_ids: Any, logprobs: Any, spans: Any) -> None:
    arrays = (token_ids, logprobs, spans)
    if not all(isinstance(array, np.ndarray) for array in arrays):
        raise ValueError("the answer's buffers are not arrays")
    kinds = tuple(array.dtype.name for array in arrays)
    if kinds != ("int32", "float32", "int32") or spans.ndim != 2 or spans.shape[1] != 3:
        raise ValueError(f"the answer's arrays are {', '.join(kinds)}, spans {spans.shape}")
    if token_ids.ndim != 1 or token_ids.shape != logprobs.shape:
        raise ValueError(f"{token_ids.shape} token IDs but {logprobs.shape} log-probabilities")
    values = cast("npt.NDArray[np.float32]", logprobs)
    if not np.isfinite(values).all() or (values > 0).any() or (values <= SENTINEL).any():
        raise ValueError("a log-probability is missing, not finite or above 0")


def _expect_spans(spans: npt.NDArray[np.int32], tokens: int) -> None:
    starts, ends = spans[:, 0], spans[:, 1]
    whole = [0, *ends.tolist()], [*starts.tolist(), tokens]
    if len(spans) and (whole[0] != whole[1] or (ends <= starts).any()):
        raise ValueError(f"the spans {spans[:, :2].tolist()} do not cover {tokens} tokens")
