r"""Text to token IDs and back, and the chat template around them.

    <|im_start|>system\n...<|im_end|>\n<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n

Job: hold the tokenizer that the simulator and the reasoning tasks share (byte-level BPE, made by
`nodes.train_tokenizer`).
Does not know: tasks and models.
Invariants: decoding what was encoded returns the text, whatever it is. Text never becomes a special
token unless `encode_marked` is asked to: a user cannot close its own turn. A later turn's prompt
only appends: what came before is never tokenized again.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

FILE = Path(__file__).parent / "data" / "tokenizer.json"
START, END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (
    "<|endoftext|>",
    START,
    END,
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<tool_call>",
    "</tool_call>",
)
INNER_MARKS = SPECIAL_TOKENS[3:]  # those that may stand within a message
_MARKS = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")

Ids = npt.NDArray[np.int32]


class Tokens:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = {text: tokenizer.token_to_id(text) for text in SPECIAL_TOKENS}
        missing = [text for text, number in self._special.items() if number is None]
        if missing:
            raise ValueError(f"the tokenizer lacks {', '.join(missing)}; train it again")
        tokenizer.encode_special_tokens = True
        self.size = int(tokenizer.get_vocab_size())
        self.end = int(self._special[END])

    def encode(self, text: str) -> list[int]:
        """Return the token IDs of plain text; marks in it stay text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_marked(self, text: str) -> list[int]:
        """Return the token IDs of text whose marks are special tokens; for what we wrote."""
        ids: list[int] = []
        for part in _MARKS.split(text):
            special = self._special.get(part)
            ids += self.encode(part) if special is None else [special]
        return ids

    def decode(self, token_ids: Sequence[int] | Ids) -> str:
        """Return the text of token IDs, special tokens as their marks."""
        ids = np.asarray(token_ids, dtype=np.int64).tolist()
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def opening(self, messages: Sequence[tuple[str, str]]) -> Ids:
        """Return int32 [n]: the (role, text) messages, and the start of the assistant's turn."""
        ids: list[int] = []
        for role, text in messages:
            ids += self.message(role, text)
        return np.array(ids + self.assistant(), dtype=np.int32)

    def next_turn(self, role: str, text: str) -> Ids:
        """Return int32 [n]: what follows a completion that ended with its end token."""
        ids = [*self.encode("\n"), *self.message(role, text), *self.assistant()]
        return np.array(ids, dtype=np.int32)

    def message(self, role: str, text: str) -> list[int]:
        """Return the token IDs of one message that nobody samples."""
        inner = self.encode(f"{role}\n{text}")
        return [self._special[START], *inner, self.end, *self.encode("\n")]

    def assistant(self, parts: Sequence[str] | None = None) -> list[int]:
        """Return the start of the assistant's turn, or all of one that said `parts`.

        A part that is one of INNER_MARKS becomes its special token.
        """
        start = [self._special[START], *self.encode("assistant\n")]
        if parts is None:
            return start
        for part in parts:
            start += [self._special[part]] if part in INNER_MARKS else self.encode(part)
        return [*start, self.end, *self.encode("\n")]


@cache
def load(file: Path = FILE) -> Tokens:
    """Return the tokenizer of a file; the same object at every call.

    Raises: ValueError if it lacks one of SPECIAL_TOKENS.
    """
    return Tokens(Tokenizer.from_file(str(file)))
