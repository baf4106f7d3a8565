"""The small completion that a backend has to give before it is used.

Job: make the request, and say what is wrong with the answer.
Does not know: when a backend is probed, or what becomes of one whose answer is wrong.
Invariants: the prompt is short and of low token IDs, which every vocabulary has; its cache salt is
nobody else's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.arrays import array_buffer

from .alignment import read_completion
from .messages import Generate, Generated

PROMPT = (5, 6, 7, 8)
MOST_TOKENS = 4
SALT = "probe"


def probe_request(ticket: str) -> tuple[Generate, list[Any]]:
    """Return a `generate` of a few tokens under this ticket, and its body."""
    buffer, body = array_buffer("token_ids", np.array(PROMPT, dtype=np.int32))
    session = f"probe-{ticket}"[:256]
    return Generate(ticket, session, MOST_TOKENS, (buffer,), seed=0, cache_salt=SALT), [body]


def fault(message: Generated, body: Sequence[Any]) -> str:
    """Return what is wrong with the answer to a probe; empty if it can be used."""
    try:
        found = read_completion(message, body)
    except ValueError as wrong:
        return str(wrong)
    if not 1 <= len(found.token_ids) <= MOST_TOKENS:
        return f"{len(found.token_ids)} tokens, asked for 1 to {MOST_TOKENS}"
    if found.token_ids.min() < 0:
        return "a token ID is below 0"
    if not len(found.policy_spans):
        return "no span says which policy sampled"
    if found.finish_reason == "abort":
        return "it was aborted unasked"
    return ""
