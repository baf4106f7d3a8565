"""A backend that answers every request at once, and the same answer without a router.

No tokenizer, no step loop: the tokens asked for, with log-probabilities, made once.
"""

import signal
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from engine.arrays import array_buffer
from engine.records import Buffer
from engine.sockets import Bounds, open_socket
from engine.topology import load
from engine.wire import Codec, encode
from nodes.backends.link import Offer, RouterLink
from nodes.inference.messages import FROM_RUN_WORKER, Generate, Generated

POLL_MS = 50


def answer(asked: Generate) -> tuple[Generated, list[Any]]:
    """Return a completion of as many tokens as were asked for, and its body frames."""
    described = completion(asked.max_tokens)
    buffers = tuple([buffer for buffer, _ in described])
    message = Generated(asked.request_id, "length", 0, "null-0", 0.0, 0.0, 0.0, buffers)
    return message, [frame for _, frame in described]


@cache
def completion(tokens: int) -> list[tuple[Buffer, Any]]:
    """Return the described buffers of a completion of so many tokens."""
    return [
        array_buffer("token_ids", np.arange(tokens, dtype=np.int32)),
        array_buffer("logprobs", np.full(tokens, -0.5, dtype=np.float32)),
        array_buffer("policy_spans", np.array([[0, tokens, 0]], dtype=np.int32)),
    ]


def serve(path: str, node: str) -> None:
    """Answer what the router dispatches, until terminated."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    link = RouterLink(zmq.Context(), load(Path(path)), node, Offer("null", 1024))
    while True:
        link.socket.poll(POLL_MS)
        for message, _ in link.receive(time.monotonic()):
            if isinstance(message, Generate):
                link.answer(*answer(message))
        link.beat(time.monotonic(), (), {})


def serve_directly(endpoint: str) -> None:
    """Answer whoever asks over one socket, without a router, until terminated."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    codec = Codec[Any](FROM_RUN_WORKER)
    socket = open_socket(zmq.Context(), zmq.ROUTER, Bounds())
    socket.bind(endpoint)
    while True:
        peer, *frames = socket.recv_multipart()
        message, _ = codec.decode(frames)
        if isinstance(message, Generate):
            socket.send_multipart([peer, *encode(*answer(message))])
