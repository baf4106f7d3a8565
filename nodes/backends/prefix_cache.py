"""Which prompt tokens a server would not have to compute again.

Job: count the tokens of a prompt whose blocks are held, least recently used blocks leaving first.
Does not know: requests, time or what the tokens say.
Invariants: a block is named by all tokens up to its end, so equal blocks after different prefixes
differ. Only whole blocks are held, and at least one token of a prompt is always computed.
"""

from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
import numpy.typing as npt


class PrefixCache:
    """Blocks of `block_tokens` tokens, at most `capacity_tokens` in all."""

    def __init__(self, capacity_tokens: int, block_tokens: int = 16) -> None:
        self._most = capacity_tokens // block_tokens
        self._block = block_tokens
        self._held: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        """Return the tokens held."""
        return len(self._held) * self._block

    def match(self, token_ids: npt.NDArray[np.int32], salt: int = 0) -> int:
        """Return how many leading tokens are held, and note their use."""
        matched = 0
        for block in self._blocks(token_ids[:-1], salt):
            if block not in self._held:
                break
            self._held.move_to_end(block)
            matched += self._block
        return matched

    def store(self, token_ids: npt.NDArray[np.int32], salt: int = 0) -> None:
        """Hold the whole blocks of `token_ids`."""
        for block in self._blocks(token_ids, salt):
            self._held[block] = None
            self._held.move_to_end(block)
        while len(self._held) > self._most:
            self._held.popitem(last=False)

    def _blocks(self, token_ids: npt.NDArray[np.int32], salt: int) -> Iterator[bytes]:
        name = salt.to_bytes(8, "little")
        for start in range(0, len(token_ids) - self._block + 1, self._block):
            block = token_ids[start : start + self._block].tobytes()
            name = blake2b(name + block, digest_size=16).digest()
            yield name
