"""Version 1 of the wire format, pinned: these files are never changed, only added to."""

import json
from typing import Any

import orjson
import pytest

from engine.wire import Codec, encode, write_json

from ..golden_kit import DIRECTORY, SAMPLES
from ..wire_kit import EDGES, KINDS

FILES = sorted(DIRECTORY.glob("*.json"))
BY_KIND = {record.kind: (record, body) for record, body in SAMPLES}


def read(path: Any) -> tuple[dict[str, Any], list[bytes]]:
    file = json.loads(path.read_text(encoding="utf-8"))
    first, header, *body = file["frames"]
    return file, [first.encode(), header.encode(), *map(bytes.fromhex, body)]


def test_every_kind_is_pinned() -> None:
    assert {path.stem for path in FILES} == {kind.kind for kind in KINDS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_pinned_frames_decode_to_the_pinned_record(path: Any) -> None:
    file, frames = read(path)
    for kinds in EDGES.values():
        if file["kind"] in {kind.kind for kind in kinds}:
            record, body = Codec[Any](kinds).decode(frames)
            assert orjson.loads(write_json(record)) == file["record"]
            assert (record, body) == BY_KIND[file["kind"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_pinned_record_encodes_to_the_pinned_frames(path: Any) -> None:
    file, frames = read(path)
    first, header, *body = encode(*BY_KIND[file["kind"]])
    assert [first, *body] == [frames[0], *frames[2:]]
    assert orjson.loads(header) == orjson.loads(frames[1])
