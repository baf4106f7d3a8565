"""Frames to records and back: the one place that encodes and decodes.

    frame 0    b"rollmq/1 submit"              protocol version and kind, ASCII
    frame 1    {"submit_id": "s-1", ...}       the header, JSON
    frame 2..  raw little-endian buffers       those of the header's "buffers", in order

A body frame holds one buffer, or several that follow one another without a gap: `pack` joins small
ones, because a frame costs more than its bytes.

Wrong version, unknown kind, a header that does not fit its record, missing or trailing frames, and
buffers whose length is not what their dtype and shape say are refused, naming the field. Body
frames are never read or copied here; `arrays` does. This module knows no socket.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

import msgspec
import orjson

from .errors import LocalProtocolError, RemoteProtocolError
from .messages import Message
from .records import Buffer
from .typed import Mismatch, compile_reader

VERSION = 1
PREFIX = b"rollmq/%d " % VERSION
HEADER_BYTES = 32 * 1024 * 1024  # receipts of 100,000 rollouts fit
PACK_BYTES = 256 * 1024  # above, copying costs more than another frame
JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY

write_json = msgspec.json.Encoder().encode  # of records
M = TypeVar("M")


class Codec(Generic[M]):
    """Decode the messages that one edge carries in one direction; refuse all others."""

    def __init__(self, kinds: Iterable[type[M]]) -> None:
        self._readers: dict[bytes, tuple[Callable[[bytes], M], bool]] = {}
        for kind in kinds:
            first = PREFIX + kind.kind.encode()  # type: ignore[attr-defined]
            has_body = "buffers" in kind.__struct_fields__  # type: ignore[attr-defined]
            self._readers[first] = (compile_reader(kind), has_body)

    def decode(self, frames: Sequence[Any]) -> tuple[M, list[Any]]:
        """Return the record and its body frames, as they came (bytes or zmq.Frame).

        Raises: RemoteProtocolError, naming the field.
        """
        if len(frames) < 2:
            raise RemoteProtocolError(f"expected at least 2 frames, got {len(frames)}", "frames")
        read, has_body = self._reader(_bytes(frames[0]))
        header = _bytes(frames[1])
        if len(header) > HEADER_BYTES:
            raise RemoteProtocolError(f"{len(header)} bytes are over {HEADER_BYTES}", "header")
        try:
            record = read(header)
        except Mismatch as wrong:
            raise RemoteProtocolError(wrong.message, ".".join(wrong.path) or "header") from None
        except orjson.JSONDecodeError as wrong:
            raise RemoteProtocolError(str(wrong), "header") from None
        body = list(frames[2:])
        described = record.buffers if has_body else ()  # type: ignore[attr-defined]
        if described or body:
            _check_body(described, body)
        return record, body

    def _reader(self, first: bytes) -> tuple[Callable[[bytes], M], bool]:
        found = self._readers.get(first)
        if found is not None:
            return found
        if not first.startswith(PREFIX):
            expected = f"expected {PREFIX.decode()!r}, got {first[:24]!r}"
            raise RemoteProtocolError(expected, "version")
        allowed = ", ".join(sorted(kind[len(PREFIX) :].decode() for kind in self._readers))
        raise RemoteProtocolError(f"{first[:40]!r} is not one of {allowed}", "kind")


def encode(message: Message, body: Sequence[Any] = ()) -> list[Any]:
    """Return the frames of `message`; `body` holds the buffers that it describes.

    Raises: LocalProtocolError if body and descriptions differ.
    """
    described = getattr(message, "buffers", ())
    if described or body:
        try:
            _check_body(described, body)
        except RemoteProtocolError as wrong:
            raise LocalProtocolError(str(wrong)) from None
    return forward(message, body)


def pack(body: Sequence[Any]) -> Sequence[Any]:
    """Return a body of one buffer a frame as one frame, if it is small and no buffer is empty."""
    if len(body) < 2 or size_bytes(body) > PACK_BYTES or not all(map(len, body)):
        return body
    return [b"".join(body)]


def forward(message: Message, body: Sequence[Any]) -> list[Any]:
    """Return the frames of `message` for a body whose frames were checked when they came."""
    return [_first_frame(message.kind), write_json(message), *body]


@cache
def _first_frame(kind: str) -> bytes:
    return PREFIX + kind.encode()


def json_buffer(name: str, value: Any) -> tuple[Buffer, bytes]:
    """Describe and encode a JSON value as one body frame."""
    text = orjson.dumps(value, option=JSON_OPTIONS)
    return Buffer(name, "json", (len(text),)), text


def read_json(buffer: Buffer, frame: Any) -> Any:
    """Return a body frame's JSON value. Raises: RemoteProtocolError if it holds none."""
    if buffer.dtype != "json":
        raise RemoteProtocolError(f"expected json, got {buffer.dtype}", buffer.name)
    try:
        return orjson.loads(memoryview(frame))
    except orjson.JSONDecodeError as wrong:
        raise RemoteProtocolError(str(wrong), buffer.name) from None


def split(buffers: Sequence[Buffer], body: Sequence[Any]) -> Sequence[Any]:
    """Return one frame for each buffer of a body: views on a frame that holds several.

    The body was checked, or is one frame of all the buffers joined.
    """
    if len(buffers) == len(body):
        return body
    parts: list[Any] = []
    frames = iter(body)
    frame, at = memoryview(b""), 0
    for buffer in buffers:
        if at == len(frame):
            frame, at = memoryview(next(frames, b"")), 0
        parts.append(frame[at : at + buffer.size_bytes])
        at += buffer.size_bytes
    return parts


def size_bytes(body: Sequence[Any]) -> int:
    """Add up the lengths of body frames."""
    return sum(map(len, body))


def _bytes(frame: Any) -> bytes:
    return frame if frame.__class__ is bytes else frame.bytes


def _check_body(described: Sequence[Buffer], body: Sequence[Any]) -> None:
    sizes = [buffer.size_bytes for buffer in described]
    lengths = [len(frame) for frame in body]
    if sizes != lengths:
        _check_packed(described, sizes, lengths)
    names = set()
    for buffer in described:
        if buffer.dtype == "json" and len(buffer.shape) != 1:
            raise RemoteProtocolError("json has one dimension", f"buffers.{buffer.name}")
        names.add(buffer.name)
    if len(names) != len(described):
        raise RemoteProtocolError("names repeat", "buffers")


def _check_packed(described: Sequence[Buffer], sizes: list[int], lengths: list[int]) -> None:
    """Refuse a body whose frames are not, each, one buffer or several that are not empty."""
    position = 0
    for length in lengths:
        left, first = length, position
        while position < len(sizes) and (position == first or left):
            size = sizes[position]
            if size > left or (not size and left):
                buffer = described[position]
                expected = f"{buffer.dtype} {list(buffer.shape)} is {size} bytes"
                raise RemoteProtocolError(f"{expected}, got {left}", f"buffers.{buffer.name}")
            left -= size
            position += 1
        if position == first:
            raise RemoteProtocolError(f"{len(sizes)} described, another frame sent", "buffers")
        if left:
            field = f"buffers.{described[-1].name}"
            raise RemoteProtocolError(f"{left} bytes more were sent than it has", field)
    if position < len(sizes):
        raise RemoteProtocolError(f"{len(sizes)} described, {position} sent", "buffers")
