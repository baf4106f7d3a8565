"""What a backend takes for a prompt."""

import numpy as np
import pytest

from engine.arrays import array_buffer
from engine.records import Buffer
from nodes.backends.prompt import read_prompt
from nodes.inference.messages import Generate

VOCABULARY = 1000
PROMPT = np.array([5, 0, VOCABULARY - 1], dtype=np.int32)


def test_a_prompt_is_read_as_it_was_sent() -> None:
    buffer, frame = array_buffer("token_ids", PROMPT)
    asked = Generate("r", "s", 1, (buffer,))
    assert read_prompt(asked, [frame], VOCABULARY).tolist() == PROMPT.tolist()


@pytest.mark.parametrize(
    ("buffer", "frame", "why"),
    [
        (Buffer("token_ids", "json", (2,)), b"[]", "expected int32"),
        (Buffer("token_ids", "json", (1,)), b"{", "expected int32"),
        (Buffer("token_ids", "json", (0,)), b"", "expected int32"),
        (Buffer("token_ids", "int64", (1,)), bytes(8), "expected int32"),
        (Buffer("token_ids", "int32", ()), bytes(4), "expected int32"),
        (Buffer("token_ids", "int32", (1, 1)), bytes(4), "expected int32"),
        (Buffer("token_ids", "int32", (0,)), b"", "at least one token"),
        (Buffer("token_ids", "int32", (1,)), b"\xff" * 4, "token IDs go from 0"),
        (Buffer("token_ids", "int32", (1,)), b"\xff\xff\xff\x7f", "token IDs go from 0"),
    ],
)
def test_a_prompt_that_is_none_is_refused(buffer: Buffer, frame: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_prompt(Generate("r", "s", 1, (buffer,)), [frame], VOCABULARY)


def test_a_request_for_no_token_is_refused() -> None:
    buffer, frame = array_buffer("token_ids", PROMPT)
    with pytest.raises(ValueError, match="max_tokens over 0"):
        read_prompt(Generate("r", "s", 0, (buffer,)), [frame], VOCABULARY)


def test_without_a_vocabulary_any_token_from_0_on_will_do() -> None:
    buffer, frame = array_buffer("token_ids", np.array([0, 2**31 - 1], dtype=np.int32))
    assert len(read_prompt(Generate("r", "s", 1, (buffer,)), [frame])) == 2
    buffer, frame = array_buffer("token_ids", np.array([1, -1], dtype=np.int32))
    with pytest.raises(ValueError, match="token IDs go from 0"):
        read_prompt(Generate("r", "s", 1, (buffer,)), [frame])
