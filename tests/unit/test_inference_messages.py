"""The messages between run workers, router and backends."""

from typing import get_args

import numpy as np
import pytest

from engine import messages as engine_messages
from engine.arrays import array_buffer
from engine.errors import RemoteProtocolError
from engine.wire import Codec, encode
from nodes.inference import messages

EDGES = {
    messages.FROM_RUN_WORKER: messages.FromRunWorker,
    messages.TO_RUN_WORKER: messages.ToRunWorker,
    messages.FROM_BACKEND: messages.FromBackend,
    messages.TO_BACKEND: messages.ToBackend,
}


def test_no_kind_has_a_name_that_the_engine_uses() -> None:
    ours = {kind.kind for edge in EDGES for kind in edge}
    groups = ("FROM_TRAINER", "TO_TRAINER", "FROM_NODE", "TO_NODE", "WORK", "RESULTS", "EVENTS")
    theirs = {kind.kind for group in groups for kind in getattr(engine_messages, group)}
    assert not ours & theirs
    assert len(ours) == len({kind for edge in EDGES for kind in edge})


def test_what_an_edge_decodes_is_what_its_type_says() -> None:
    for kinds, union in EDGES.items():
        assert set(kinds) == set(get_args(union))


def test_a_request_has_this_form_on_the_wire() -> None:
    buffer, body = array_buffer("token_ids", np.array([1, 2], dtype=np.int32))
    frames = encode(messages.Generate("r-1", "s-1", 8, (buffer,), seed=7), [body])
    assert frames[0] == b"rollmq/1 generate"
    assert frames[1] == (
        b'{"request_id":"r-1","session":"s-1","max_tokens":8,'
        b'"buffers":[{"name":"token_ids","dtype":"int32","shape":[2]}],'
        b'"temperature":1.0,"top_p":1.0,"top_k":0,"stop_token_ids":[],"seed":7,"cache_salt":""}'
    )
    assert bytes(frames[2]) == b"\x01\0\0\0\x02\0\0\0"


def test_a_backend_without_room_is_refused() -> None:
    hello = messages.BackendHello("b", "sim-0", "simulator", 0, 0)
    with pytest.raises(RemoteProtocolError, match="capacity: expected at least 1"):
        Codec(messages.FROM_BACKEND).decode(encode(hello))
