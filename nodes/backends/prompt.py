"""The prompt of a `generate`, as every kind of backend reads it.

Job: return it, or say why it is none.
Does not know: the kind of backend.
Invariants: what is returned has at least one token, and none below 0 or beyond the vocabulary where
that is known.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.arrays import read_buffer

from ..inference.messages import Generate

MOST = int(np.iinfo(np.int32).max)


def read_prompt(
    message: Generate, body: Sequence[Any], vocabulary: int | None = None
) -> npt.NDArray[np.int32]:
    """Return the prompt of a request, int32 [n]; without a vocabulary any ID from 0 on will do.

    Raises: ValueError if it is no such array, empty, beyond the vocabulary, or nothing is asked.
    """
    buffer = message.buffers[0]
    if buffer.dtype != "int32" or len(buffer.shape) != 1:
        raise ValueError(f"expected int32 [n], got {buffer.dtype} {list(buffer.shape)}")
    prompt: npt.NDArray[np.int32] = read_buffer(buffer, body[0])
    if not len(prompt) or not message.max_tokens:
        raise ValueError("expected at least one token and max_tokens over 0")
    most = MOST if vocabulary is None else vocabulary - 1
    if prompt.min() < 0 or prompt.max() > most:
        raise ValueError(f"token IDs go from 0 to {most}")
    return prompt
