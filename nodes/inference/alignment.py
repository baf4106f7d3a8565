"""The completion in a `generated`.

Job: read its three arrays, and refuse those that a trainer could not learn from.
Does not know: who asked, and what becomes of a refusal.
Invariants: what leaves `read_completion` is a `Generation`, which checks that its arrays fit
together.
"""

from collections.abc import Sequence
from typing import Any

from engine.arrays import read_body
from engine.errors import RemoteProtocolError

from ..tasks import Generation
from .messages import Generated


def read_completion(message: Generated, body: Sequence[Any]) -> Generation:
    """Return the completion in an answer and its body.

    Raises: ValueError saying what does not fit.
    """
    try:
        _, found = read_body(message.buffers, body)
    except RemoteProtocolError as wrong:
        raise ValueError(str(wrong)) from None
    if set(found) != {"token_ids", "logprobs", "policy_spans"}:
        raise ValueError(f"the answer has buffers {sorted(found)}")
    return Generation(
        **found,
        finish_reason=message.finish_reason,
        cached_tokens=message.cached_tokens,
        queue_s=message.queue_s,
        prefill_s=message.prefill_s,
        decode_s=message.decode_s,
        backend=message.backend,
    )


def sampled_tokens(message: Generated) -> int:
    """Return how many tokens a completion has by its own header; 0 if it does not say."""
    for buffer in message.buffers:
        if buffer.name == "token_ids" and buffer.shape:
            return buffer.shape[0]
    return 0
