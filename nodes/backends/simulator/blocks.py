"""Blocks of a paged cache of keys and values, and which of them hold a known prefix.

A server cuts its cache into blocks of equally many tokens. A block that is full is named by all
tokens up to its end (and a salt), so whoever has the same tokens in front finds it by its name. A
block that nobody uses keeps its name until it is taken for something else: first those without a
name, then the least recently used.

Job: hand out blocks, take them back and find them by name, in the order in which vLLM's v1 block
pool does. Does not know: requests, time or what a name stands for.
Invariants: a block is free exactly while nobody uses it, and in use it is never handed out. A name
leads only to blocks that carry it. Of the blocks that one user frees, the last ones leave first.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Names = Sequence[Hashable]


class BlockPool:
    """`size` blocks, numbered from 0."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = OrderedDict.fromkeys(range(size))
        self._users = [0] * size
        self._name_of: dict[int, Hashable] = {}
        self._named: dict[Hashable, dict[int, None]] = {}

    @property
    def free(self) -> int:
        """Count the blocks that nobody uses, named or not."""
        return len(self._free)

    def find(self, names: Names, most: int) -> list[int]:
        """Return the blocks of the longest known prefix of `names`, at most `most`."""
        found: list[int] = []
        for name in names[:most]:
            blocks = self._named.get(name)
            if not blocks:
                break
            found.append(next(iter(blocks)))
        return found

    def unused(self, blocks: Iterable[int]) -> int:
        """Count those of `blocks` that nobody uses: using them takes as many free blocks."""
        return sum(not self._users[block] for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Use blocks that `find` returned."""
        for block in blocks:
            if not self._users[block]:
                del self._free[block]
            self._users[block] += 1

    def take(self, count: int) -> list[int]:
        """Return `count` free blocks for a new use; their names are lost.

        Raises: KeyError if fewer are free.
        """
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._unname(block)
            self._users[block] = 1
        return taken

    def name(self, block: int, name: Hashable) -> None:
        """Say what a block in use holds, now that it is full."""
        self._name_of[block] = name
        self._named.setdefault(name, {})[block] = None

    def give_back(self, blocks: Sequence[int]) -> None:
        """End one use of each block, given in the order of its tokens."""
        unnamed: list[int] = []
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            self._free[block] = None
            if block not in self._name_of:
                unnamed.append(block)
        for block in reversed(unnamed):
            self._free.move_to_end(block, last=False)

    def _unname(self, block: int) -> None:
        name = self._name_of.pop(block, None)
        if name is None:
            return
        blocks = self._named[name]
        del blocks[block]
        if not blocks:
            del self._named[name]


def block_names(
    token_ids: npt.NDArray[np.int32], block_tokens: int, salt: str = ""
) -> list[Hashable]:
    """Return the names of the whole blocks of `token_ids`, int32 [n]; other salts, other names."""
    name = blake2b(salt.encode(), digest_size=16).digest()
    names: list[Hashable] = []
    for start in range(0, len(token_ids) - block_tokens + 1, block_tokens):
        block = token_ids[start : start + block_tokens].tobytes()
        name = blake2b(name + block, digest_size=16).digest()
        names.append(name)
    return names
