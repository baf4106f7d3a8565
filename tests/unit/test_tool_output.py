"""What a program wrote: bounded, readable, and the same however it arrives."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.tools.output import Kept, MarkedOutput, readable

NONCE = "0123456789abcdef"
MARK = b"\x1b_" + NONCE.encode() + b";"
PIECES = st.sampled_from(
    [b"\x1b", b"\x1b_", MARK[:7], MARK, MARK + b"12", b"\x1b\\", b";", b"a", b"\n"]
)
NOISE = st.lists(PIECES | st.binary(max_size=12), max_size=30).map(b"".join)


def fed(data: bytes, cuts: list[int], head: int, tail: int) -> tuple[str, int | None, bytes]:
    output, kept = MarkedOutput(NONCE, Kept(head, tail)), Kept(head, tail)
    del kept
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    status, rest = None, b""
    for start, end in itertools.pairwise(edges):
        if status is not None:
            rest += data[start:end]
            continue
        ended = output.feed(data[start:end])
        if ended is not None:
            status, rest = ended.status, ended.rest
    output.flush()
    return output.kept.text(), status, rest


@settings(deadline=None, max_examples=300)
@given(NOISE, NOISE, st.booleans(), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_chunking_gives_the_same(
    before: bytes, after: bytes, ends: bool, cuts: list[int]
) -> None:
    data = before + (MARK + b"7\x1b\\" if ends else b"") + after
    assert fed(data, cuts, 20, 20) == fed(data, [], 20, 20)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.lists(st.integers(0, 10_000), max_size=12))
def test_what_comes_before_the_marker_is_the_output_and_the_rest_is_kept(
    before: bytes, cuts: list[int]
) -> None:
    text, status, rest = fed(before + MARK + b"130\x1b\\next", cuts, 1000, 1000)
    assert (text, status, rest) == (readable(before), 130, b"next")


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=40), st.integers(0, 30), st.integers(0, 30))
def test_memory_is_bounded_and_counts_are_exact(pieces: list[bytes], head: int, tail: int) -> None:
    kept = Kept(head, tail)
    for piece in pieces:
        kept.add(piece)
        assert len(kept._head) <= head
        assert len(kept._tail) <= 2 * tail + len(piece)
    whole = b"".join(pieces)
    assert kept.total_bytes == len(whole)
    assert kept.left_out_bytes == max(0, len(whole) - head - tail)
    if not kept.left_out_bytes:
        assert kept.text() == readable(whole)


@given(st.binary(max_size=300))
def test_no_bytes_give_a_control_character(data: bytes) -> None:
    assert not {char for char in readable(data) if ord(char) < 32 and char not in "\n\t"}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07text", "text"),
        (b"\x1b(Btext", "text"),
        (b"10%\r50%\r100%\r\nnext", "100%\nnext"),
        (b"ab\x08c", "ac"),
        (b"\x08\x08a", "a"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("é".encode(), "é"),
        (b"a\0b\x7f", "ab"),
    ],
)
def test_escapes_and_controls_are_taken_as_they_are_meant(written: bytes, read: str) -> None:
    assert readable(written) == read
