import json
import math
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.arrays import array_buffer, read_body, read_buffer
from engine.errors import LocalProtocolError, RemoteProtocolError
from engine.messages import (
    EVENTS,
    FROM_TRAINER,
    TO_TRAINER,
    WORK,
    Ack,
    Goodbye,
    Hello,
    Ping,
    Status,
    Submit,
    Work,
)
from engine.records import Buffer
from engine.typed import Mismatch, compile_decoder, compile_reader
from engine.wire import (
    HEADER_BYTES,
    PACK_BYTES,
    PREFIX,
    Codec,
    encode,
    json_buffer,
    pack,
    size_bytes,
    split,
)
from nodes.inference.messages import FROM_BACKEND, FROM_RUN_WORKER, TO_BACKEND, TO_RUN_WORKER

from ..wire_kit import EDGES, KINDS, sent

CODECS: dict[str, Codec[Any]] = {name: Codec(kinds) for name, kinds in EDGES.items()}
TRAINER: Codec[Any] = Codec(FROM_TRAINER)
WORKER: Codec[Work] = Codec(WORK)
HELLO = {"client_id": "c", "window": 8}
SUBMIT = {"submit_id": "s", "group_id": "g", "task_id": "t", "task_kind": "k"}
FAST = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

EVERY_KIND = (*KINDS, *FROM_BACKEND, *TO_BACKEND, *FROM_RUN_WORKER, *TO_RUN_WORKER)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def frames(kind: str, header: Any, *body: bytes) -> list[bytes]:
    text = header if isinstance(header, bytes) else orjson.dumps(header)
    return [b"rollmq/1 " + kind.encode(), text, *body]


def refusal(codec: Codec[Any], message: list[bytes]) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(message)
    return caught.value


def submit(buffers: Any, *body: bytes, **changes: Any) -> list[bytes]:
    header = {**SUBMIT, "rollout_ids": ["r"], "buffers": buffers, **changes}
    return frames("submit", header, *body)


def read(codec: Codec[Any], message: list[bytes]) -> str | None:
    """Read all of a message; return the field for which it was refused, if it was."""
    try:
        record, body = codec.decode(message)
        for buffer, frame in zip(getattr(record, "buffers", ()), body, strict=True):
            read_buffer(buffer, frame)
    except RemoteProtocolError as wrong:
        return wrong.field
    return None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_message_comes_back_as_it_was_sent(kind: type[Any]) -> None:
    edges = [name for name, kinds in EDGES.items() if kind in kinds]

    @FAST
    @given(sent(kind))
    def returns(drawn: tuple[Any, list[bytes]]) -> None:
        record, body = drawn
        for edge in edges:
            assert CODECS[edge].decode(encode(record, body)) == (record, body)

    returns()


def test_frames_are_version_and_kind_then_header_then_body() -> None:
    buffer, text = json_buffer("task", {"a": 1})
    message = encode(Submit("s", "g", "t", "k", ("r",), (buffer,)), [text])
    assert message[0] == b"rollmq/1 submit"
    assert orjson.loads(message[1])["buffers"] == [{"name": "task", "dtype": "json", "shape": [7]}]
    assert message[2:] == [b'{"a":1}']


@pytest.mark.parametrize(
    "first",
    [b"", b"rollmq/2 hello", b"rollmq/10 hello", b"rollmq/1hello", b"hello", b"ROLLMQ/1 hello"],
)
def test_another_version_is_refused_by_name(first: bytes) -> None:
    assert refusal(TRAINER, [first, orjson.dumps(HELLO)]).field == "version"


@pytest.mark.parametrize("kind", ["", "welcome", "work", "Hello", "hello ", "nonsense"])
def test_an_unknown_kind_or_one_of_another_edge_is_refused_by_name(kind: str) -> None:
    wrong = refusal(TRAINER, frames(kind, HELLO))
    assert wrong.field == "kind"
    assert "goodbye, hello" in str(wrong)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_frames_are_refused(count: int) -> None:
    assert refusal(TRAINER, frames("hello", HELLO)[:count]).field == "frames"


@pytest.mark.parametrize("header", [b"", b"{", b"\xff", b'{"a":NaN}', b"[" * 2000, b'"\\ud800"'])
def test_a_header_that_is_not_json_is_refused(header: bytes) -> None:
    assert refusal(TRAINER, frames("goodbye", header)).field == "header"


@pytest.mark.parametrize("header", [[], "text", 1, None, True, [{}]])
def test_a_header_that_is_no_object_is_refused(header: Any) -> None:
    wrong = refusal(TRAINER, frames("goodbye", header))
    assert wrong.field == "header"
    assert "expected an object" in str(wrong)


def test_a_header_over_the_limit_is_refused_unread() -> None:
    wrong = refusal(TRAINER, frames("goodbye", b" " * (HEADER_BYTES + 1)))
    assert wrong.field == "header"
    assert TRAINER.decode(frames("goodbye", b"{}".ljust(HEADER_BYTES)))[0] == Goodbye()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"colour": 1}, "colour"),
        ({"window": True}, "window"),
        ({"window": 1.0}, "window"),
        ({"window": "1"}, "window"),
        ({"window": None}, "window"),
        ({"window": -1}, "window"),
        ({"window": 2**63}, "window"),
        ({"client_id": ""}, "client_id"),
        ({"client_id": "c" * 201}, "client_id"),
        ({"client_id": 7}, "client_id"),
        ({"client_id": None}, "client_id"),
    ],
)
def test_a_wrong_field_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    assert refusal(TRAINER, frames("hello", HELLO | changes)).field == field


@pytest.mark.parametrize("missing", sorted(HELLO))
def test_a_missing_field_is_refused_by_name(missing: str) -> None:
    header = {name: value for name, value in HELLO.items() if name != missing}
    wrong = refusal(TRAINER, frames("hello", header))
    assert wrong.field == missing
    assert "is missing" in str(wrong)


@pytest.mark.parametrize(
    ("seqs", "field"),
    [
        (1, "seqs"),
        ([1], "seqs.0"),
        ([[1, 2], [3]], "seqs.1"),
        ([[1, 2], [3, "4"]], "seqs.1.1"),
        ([[1, 2], [3, -4]], "seqs.1.1"),
        ([[1, 2, 3]], "seqs.0"),
    ],
)
def test_a_refusal_leads_into_arrays(seqs: Any, field: str) -> None:
    assert refusal(TRAINER, frames("ack", {"seqs": seqs, "window": 1})).field == field


def test_a_refusal_leads_into_records_and_objects() -> None:
    timing = {"stage": "run", "attempt": 1, "node": "", "queue_s": 0, "lease_s": 0}
    result: dict[str, Any] = {
        "seq": 1,
        **dict.fromkeys(("rollout_id", "group_id", "task_id"), "x"),
        "group_size": 1,
        "outcome": "completed",
        "reward": 1.0,
        "rewards": {"a": 1.0},
        "trainable": True,
        "failures": [],
        "timings": [],
        "total_s": 1.0,
    }
    trainer: Codec[Any] = Codec(TO_TRAINER)
    trainer.decode(frames("result", result))
    wrong = refusal(trainer, frames("result", result | {"timings": [timing]}))
    assert wrong.field == "timings.0.work_s"
    assert refusal(trainer, frames("result", result | {"rewards": {"a": "1"}})).field == "rewards.a"
    assert refusal(trainer, frames("result", result | {"outcome": "fine"})).field == "outcome"


def test_an_integer_is_a_number_and_infinity_is_none() -> None:
    work = {**SUBMIT, "broker_id": "b", "rollout_id": "r", "stage": "run", "attempt": 1}
    del work["submit_id"]
    buffers = [{"name": "task", "dtype": "json", "shape": [2]}]
    good = {**work, "timeout_s": 3, "buffers": buffers}
    assert WORKER.decode(frames("work", good, b"{}"))[0].timeout_s == 3.0
    assert refusal(WORKER, frames("work", good | {"timeout_s": "3"}, b"{}")).field == "timeout_s"
    endless = orjson.dumps(good).replace(b'"timeout_s":3', b'"timeout_s":1e400')
    assert refusal(WORKER, frames("work", endless, b"{}")).field == "header"


TASK = {"name": "task", "dtype": "json", "shape": [2]}


@pytest.mark.parametrize(
    ("buffers", "body", "field"),
    [
        ([TASK], [], "buffers"),
        ([TASK], [b"{}", b"{}"], "buffers"),
        ([TASK], [b"{ }"], "buffers.task"),
        ([TASK], [b""], "buffers.task"),
        ([], [], "buffers"),
        ([TASK, TASK | {"name": "b"}], [b"{}", b"{}"], "buffers"),
        ([TASK | {"dtype": "float16"}], [b"{}"], "buffers.0.dtype"),
        ([TASK | {"dtype": None}], [b"{}"], "buffers.0.dtype"),
        ([TASK | {"name": ""}], [b"{}"], "buffers.0.name"),
        ([TASK | {"shape": 2}], [b"{}"], "buffers.0.shape"),
        ([TASK | {"shape": [-2]}], [b"{}"], "buffers.0.shape.0"),
        ([TASK | {"shape": [2.0]}], [b"{}"], "buffers.0.shape.0"),
        ([TASK | {"shape": [1] * 33}], [b"{}"], "buffers.0.shape"),
        ([TASK | {"shape": [2**62, 2**62]}], [b"{}"], "buffers.task"),
        ([TASK | {"order": "F"}], [b"{}"], "buffers.0.order"),
    ],
)
def test_a_body_that_is_not_as_described_is_refused(
    buffers: Any, body: list[bytes], field: str
) -> None:
    assert refusal(TRAINER, submit(buffers, *body)).field == field


def test_names_of_buffers_do_not_repeat() -> None:
    twice = [{"name": "a", "dtype": "uint8", "shape": [1]}] * 2
    work = {"broker_id": "b", "rollout_id": "r", "group_id": "g", "task_id": "t", "task_kind": "k"}
    header = {**work, "stage": "run", "attempt": 1, "timeout_s": 1, "buffers": twice}
    assert refusal(WORKER, frames("work", header, b"1", b"2")).field == "buffers"


def test_a_kind_without_buffers_has_no_body() -> None:
    assert refusal(TRAINER, frames("goodbye", {}, b"")).field == "buffers"


def test_what_would_be_refused_is_not_encoded() -> None:
    buffer, text = json_buffer("status", {})
    with pytest.raises(LocalProtocolError, match="buffers"):
        encode(Status("q", (buffer,)))
    with pytest.raises(LocalProtocolError, match=r"buffers\.status"):
        encode(Status("q", (buffer,)), [text + b" "])
    with pytest.raises(LocalProtocolError, match="buffers"):
        encode(Ping(1), [text])


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64", "uint8"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (0, 4), (2, 1, 2)])
def test_arrays_travel_without_a_copy(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape), dtype=dtype).reshape(shape)
    buffer, frame = array_buffer("a", array)
    received = read_buffer(buffer, frame)
    assert (received.dtype.name, received.shape) == (dtype, shape)
    assert np.array_equal(received, array)
    assert np.shares_memory(received, array) or not array.size
    assert size_bytes([frame]) == buffer.size_bytes


def test_a_received_array_is_a_read_only_view_of_its_frame() -> None:
    frame = bytes(range(8))
    received = read_buffer(Buffer("a", "int32", (2,)), frame)
    assert np.shares_memory(received, np.frombuffer(frame, dtype=np.uint8))
    assert not received.flags.writeable


def test_items_are_little_endian_in_c_order() -> None:
    array = np.array([[1, 2], [3, 4]], dtype=">i4")
    buffer, frame = array_buffer("a", np.asfortranarray(array))
    assert buffer == Buffer("a", "int32", (2, 2))
    assert bytes(frame) == b"".join(n.to_bytes(4, "little") for n in (1, 2, 3, 4))


@pytest.mark.parametrize("dtype", ["float16", "bool", "complex64", "uint32", "datetime64[s]", "U1"])
def test_an_array_without_a_form_on_the_wire_is_not_sent(dtype: str) -> None:
    with pytest.raises(LocalProtocolError, match="a: dtype"):
        array_buffer("a", np.zeros(2, dtype=dtype))


@pytest.mark.parametrize("shape", [(0, 2**62, 2**62), (0, 2**63)])
def test_an_empty_array_of_an_impossible_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RemoteProtocolError, match="a: "):
        read_buffer(Buffer("a", "uint8", shape), b"")


def test_a_json_frame_that_does_not_parse_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="a: "):
        read_buffer(Buffer("a", "json", (1,)), b"{")


ARRAYS = st.lists(
    st.sampled_from(["int32", "int64", "float32", "uint8"]).flatmap(
        lambda dtype: st.integers(0, 3).map(lambda n: np.arange(n, dtype=dtype))
    ),
    min_size=1,
    max_size=6,
)


def described(arrays: list[Any]) -> tuple[tuple[Buffer, ...], list[Any]]:
    pairs = [array_buffer(f"a{number}", array) for number, array in enumerate(arrays)]
    return tuple(buffer for buffer, _ in pairs), [frame for _, frame in pairs]


def cut_up(data: st.DataObject, body: list[Any]) -> list[bytes]:
    """Join neighbours, none of them empty, as a sender may."""
    frames: list[bytes] = []
    for part in map(bytes, body):
        if frames and frames[-1] and part and data.draw(st.booleans()):
            frames[-1] += part
        else:
            frames.append(part)
    return frames


@FAST
@given(arrays=ARRAYS, data=st.data())
def test_buffers_are_the_same_however_they_share_frames(
    arrays: list[Any], data: st.DataObject
) -> None:
    buffers, body = described(arrays)
    sent_ = cut_up(data, body)
    work = Work("b", "r", "g", "t", "k", "run", 1, 1.0, buffers)
    message, frames_ = WORKER.decode(encode(work, sent_))
    _, received = read_body(message.buffers, frames_)
    for number, array in enumerate(arrays):
        assert np.array_equal(received[f"a{number}"], array)
        assert received[f"a{number}"].flags.aligned
    assert frames_ == sent_


@FAST
@given(arrays=ARRAYS, data=st.data())
def test_a_cut_or_longer_body_is_refused(arrays: list[Any], data: st.DataObject) -> None:
    buffers, body = described(arrays)
    sent_ = cut_up(data, body)
    at = data.draw(st.integers(0, len(sent_) - 1))
    if data.draw(st.booleans()) or not sent_[at]:
        sent_[at] += b"more"
    else:
        sent_[at] = sent_[at][:-1]
    work = Work("b", "r", "g", "t", "k", "run", 1, 1.0, buffers)
    with pytest.raises(LocalProtocolError, match="buffers"):
        encode(work, sent_)


@given(st.lists(st.binary(max_size=3), min_size=1, max_size=6))
def test_a_body_that_was_joined_is_split_where_its_buffers_end(parts: list[bytes]) -> None:
    buffers = [Buffer(f"b{n}", "uint8", (len(part),)) for n, part in enumerate(parts)]
    assert [bytes(part) for part in split(buffers, [b"".join(parts)])] == parts


def test_small_buffers_share_a_frame_and_large_ones_do_not() -> None:
    small = [b"1234", b"56", b"7"]
    assert pack(small) == [b"1234567"]
    for apart in ([b"1"], [b"1", b""], [b"1", bytes(PACK_BYTES)]):
        assert pack(apart) == apart


@FAST
@given(edge=st.sampled_from(sorted(CODECS)), message=st.lists(st.binary(max_size=64), max_size=4))
def test_garbage_is_refused_and_nothing_worse(edge: str, message: list[bytes]) -> None:
    with pytest.raises(RemoteProtocolError):
        CODECS[edge].decode(message)


@settings(FAST, max_examples=300)
@given(st.data())
def test_a_damaged_message_is_taken_or_refused_and_nothing_worse(data: st.DataObject) -> None:
    edge = data.draw(st.sampled_from(sorted(EDGES)))
    kind = data.draw(st.sampled_from(EDGES[edge]))
    first, header, *body = encode(*data.draw(sent(kind)))
    damaged = orjson.loads(header)
    name = data.draw(st.sampled_from([*damaged, "more"]))
    damaged[name] = data.draw(JSON)
    try:
        text = orjson.dumps(damaged)
    except TypeError:
        return
    assert read(CODECS[edge], [first, text, *body]) != ""


@settings(FAST, max_examples=200)
@given(kind=st.sampled_from(KINDS), header=st.binary(max_size=200), body=st.lists(st.binary()))
def test_any_bytes_after_a_good_first_frame_are_refused_cleanly(
    kind: type[Any], header: bytes, body: list[bytes]
) -> None:
    for codec in CODECS.values():
        assert read(codec, [PREFIX + kind.kind.encode(), header, *body]) != ""


@settings(FAST, max_examples=300)
@given(st.data())
def test_what_is_read_at_once_is_what_would_be_read_field_by_field(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    text = encode(*data.draw(sent(kind)))[1]
    damaged = json.dumps(damage(data, orjson.loads(text)) if data.draw(st.booleans()) else {})
    for header in (text, damaged.encode()):
        try:
            found = compile_reader(kind)(header)
        except (Mismatch, orjson.JSONDecodeError):
            continue
        assert found == compile_decoder(kind)(orjson.loads(header))


def damage(data: st.DataObject, value: Any) -> Any:
    """Replace one thing, at any depth."""
    if not isinstance(value, dict | list) or not value or data.draw(st.integers(0, 3)) == 0:
        return data.draw(JSON)
    at = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    value[at] = damage(data, value[at])
    return value


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_every_integer_on_the_wire_is_one_of_64_bits(kind: type[Any]) -> None:
    unbounded = []

    def look(part: Any) -> None:
        if isinstance(part, list):
            for each in part:
                look(each)
        if isinstance(part, dict):
            look(list(part.values()))
            if part.get("type") == "integer" and not {"minimum", "maximum"} <= part.keys():
                unbounded.append(part)

    look(msgspec.json.schema(kind))
    assert not unbounded


def test_body_frames_are_handed_on_as_the_objects_that_came() -> None:
    buffer, text = json_buffer("task", {})
    sent_ = encode(Submit("s", "g", "t", "k", ("r",), (buffer,)), [memoryview(text)])
    _, body = TRAINER.decode(sent_)
    assert body[0] is sent_[2]


def test_events_and_acknowledgements_have_the_documented_headers() -> None:
    assert encode(Ack(((1, 3), (5, 5)), 9))[1] == b'{"seqs":[[1,3],[5,5]],"window":9,"held":[]}'
    assert encode(Hello("c", 1))[1] == b'{"client_id":"c","window":1}'
    assert {kind.kind for kind in EVENTS} == {"boot", "stop", "announced"}
