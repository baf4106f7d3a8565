"""Peers that speak nonsense: to a ZeroMQ socket through ZeroMQ, and to its file without it."""

import json
import random
import socket
from collections.abc import Iterator
from contextlib import closing

PREFIX = b"rollmq/1 "
HUGE = 2**63 - 1
KINDS = (
    *("hello", "submit", "ack", "cancel", "status_request", "ping", "goodbye", "result"),
    *("worker_hello", "heartbeat", "worker_credit", "worker_lost", "worker_goodbye"),
    *("node_hello", "stage_result", "work", "boot", "stop", "no_such_kind"),
)
HEADERS = (
    *({}, [], None, "text", 7, {"unknown": 1}, {"seqs": [[0, HUGE]], "window": HUGE}),
    {"client_id": "", "window": 1},
    {"client_id": "c" * 201, "window": 1},
    {"nonce": -1},
    {"nonce": 2**64},
    {"nonce": 2**200},
    {"nonce": float("inf")},
    {"worker_id": "w", "held": [["r", HUGE]], "lag_s": 0.0},
    {"submit_id": "s", "rollout_ids": [], "buffers": []},
)
NOISE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x00" * 1000,
    b"\xff" * 1000,
    b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + b"\x00" * 48,
    b"\x01\x00" + b"\x06\x00hello" * 50,  # a peer of ZMTP 1.0 and its messages
    bytes(range(256)) * 40,
)


def messages(chance: random.Random, message_bytes: int) -> Iterator[list[bytes]]:
    """Yield messages that no node may send."""
    for kind in KINDS:
        for header in HEADERS:
            yield [PREFIX + kind.encode(), json.dumps(header).encode()]
        yield [b"rollmq/2 " + kind.encode(), b"{}"]
        yield [PREFIX + kind.encode()]
        yield [PREFIX + kind.encode(), b"{}", b"one", b"two", b"many"]
        yield [PREFIX + kind.encode(), b"{" * 100_000]
    yield [b""]
    yield [b"", b"", b""]
    yield [b"x"] * 1000
    yield [PREFIX + b"submit", b'"' + b"h" * (message_bytes - 10) + b'"']
    for _ in range(200):
        yield [chance.randbytes(chance.randrange(200)) for _ in range(chance.randrange(1, 6))]


def strangers(worker_id: str) -> list[list[bytes]]:
    """Return well-formed messages of nodes that do not exist, with extreme values."""
    hello = {"worker_id": worker_id, "node": "run-0", "host": "local", "stage": "run"}
    return [
        frames("worker_hello", **hello, slots=HUGE, bytes=HUGE, held=[["r", HUGE]]),
        frames("worker_hello", **{**hello, "node": "nobody"}, slots=1, bytes=1, held=[]),
        frames("heartbeat", worker_id=worker_id, held=[["r", HUGE]] * 1000, lag_s=1e300),
        frames("worker_lost", worker_id=worker_id, culprit="r", error="e", message=""),
        frames("node_hello", boot_id="b", node="n", role="router", host="h", figures={}),
    ]


def trainers_words() -> list[list[bytes]]:
    """Return well-formed messages of a trainer that asks for the impossible."""
    task = b'{"a": 1}'
    buffers = [{"name": "task", "dtype": "json", "shape": [len(task)]}]
    submit = {"submit_id": "s", "task_id": "t", "task_kind": "k", "buffers": buffers}
    return [
        frames("hello", client_id="stranger", window=HUGE),
        frames("ack", seqs=[[0, HUGE], [HUGE, 0]], window=HUGE),
        frames("cancel", cancel_id="c", rollout_ids=["n"] * 1000, group_ids=["g"]),
        frames("ping", nonce=HUGE),
        [*frames("submit", **submit, group_id="g", rollout_ids=["a", "a"]), task],
        [*frames("submit", **submit, group_id="g", rollout_ids=["a"], group_size=HUGE), b"short"],
        [*frames("submit", **submit, group_id="g", rollout_ids=["a"] * 2000), task],
    ]


def frames(kind: str, **header: object) -> list[bytes]:
    """Return a message's frames."""
    return [PREFIX + kind.encode(), json.dumps(header).encode()]


def shout(endpoint: str) -> None:
    """Write raw bytes to an endpoint, on several connections; hang up in the middle."""
    for noise in NOISE:
        with closing(connected(endpoint)) as peer:
            try:
                peer.sendall(noise)
            except (BrokenPipeError, ConnectionResetError):
                continue  # it has heard enough


def read_all(peer: socket.socket) -> bytes:
    """Return what a plain socket has been sent so far."""
    peer.setblocking(False)
    heard = b""
    try:
        while text := peer.recv(65_536):
            heard += text
    except (BlockingIOError, ConnectionResetError):
        return heard
    return heard


def connected(endpoint: str) -> socket.socket:
    """Return a plain socket connected to an endpoint."""
    transport, _, address = endpoint.partition("://")
    if transport == "ipc":
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(address)
        return peer
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)
