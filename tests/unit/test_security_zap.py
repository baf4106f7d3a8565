"""What ZeroMQ asks about a handshake is read and answered, whatever it is."""

from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from engine.security.zap import read_request

KEY = bytes(range(32))
ROUTE = [b"\x00abc\x01", b""]
ASKED = [b"1.0", b"1", b"front", b"10.0.0.7", b"", b"CURVE", KEY]


def test_a_request_is_read_and_answered() -> None:
    request = read_request([*ROUTE, *ASKED])
    assert request is not None
    key = z85.encode(KEY).decode()
    assert (request.domain, request.mechanism, request.key) == ("front", "CURVE", key)
    assert request.answer(allowed=True, why="") == [
        *ROUTE,
        *(b"1.0", b"1", b"200", b"", key.encode(), b""),
    ]
    refused = request.answer(allowed=False, why="unknown key")
    assert refused == [*ROUTE, b"1.0", b"1", b"400", b"unknown key", b"", b""]


def test_a_key_of_a_wrong_form_is_nobodys() -> None:
    for credentials in ([], [b""], [KEY[:31]], [KEY, KEY]):
        request = read_request([*ROUTE, *ASKED[:6], *credentials])
        assert request is not None
        assert request.key == ""
    plain = read_request([*ROUTE, *ASKED[:5], b"PLAIN", b"user", b"word"])
    assert plain is not None
    assert plain.key == ""


def test_another_version_is_not_answered() -> None:
    assert read_request([*ROUTE, b"2.0", *ASKED[1:]]) is None


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_nothing_crashes_it(frames: list[bytes]) -> None:
    request = read_request(frames)
    if request is not None:
        assert request.answer(allowed=False, why="x")[: len(request.route)] == list(request.route)
