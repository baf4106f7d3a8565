"""The simulator as a process, with this test in the router's place."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from engine.arrays import array_buffer, read_buffer
from engine.process import child_environment
from engine.sockets import Bounds, bind, open_socket
from engine.topology import load
from engine.wire import Codec, encode
from nodes import tokens
from nodes.inference.messages import (
    FROM_BACKEND,
    Abort,
    Aborted,
    BackendHello,
    BackendWelcome,
    Generate,
    Generated,
    GenerateFailed,
    Pause,
    Resume,
    UpdateStep,
    UpdateWeights,
)

DEADLINE_S = 60.0
CODEC = Codec[Any](FROM_BACKEND)
VOCABULARY = tokens.load()
PROMPT = VOCABULARY.opening([("user", "Calculate 12 + 30.")])


class Desk:
    """The router's side of one simulator."""

    def __init__(self, directory: Path, options: dict[str, Any]) -> None:
        file = directory / "topology.yaml"
        backend = {"name": "sim", "kind": "simulator", "count": 1, "capacity": 8}
        settings = {
            "version": 1,
            "run_dir": "run",
            "timeouts": {"heartbeat_s": 0.2},
            "stages": [{"name": "run"}],
            "router": {},
            "backends": [{**backend, "options": options}],
        }
        file.write_text(json.dumps(settings))
        self._context = zmq.Context()
        self._socket = open_socket(self._context, zmq.ROUTER, Bounds())
        topology = load(file)
        bind(self._socket, topology.endpoint("router_backends"))
        module = "nodes.backends.simulator"
        command = [sys.executable, "-m", module, "--topology", str(file), "--name", "sim-0"]
        self.process = subprocess.Popen(command, env=child_environment())
        self._peer = b""
        self.await_(BackendHello)
        self.send(BackendWelcome("desk"))

    def send(self, message: Any, body: Any = ()) -> None:
        self._socket.send_multipart([self._peer, *encode(message, body)])

    def generate(self, ticket: str, *, most: int = 1000, salt: str = "") -> None:
        buffer, frame = array_buffer("token_ids", PROMPT)
        asked = Generate(ticket, "s", most, (buffer,), cache_salt=salt)
        self.send(asked, [frame])

    def await_(self, *kinds: type) -> tuple[Any, list[Any]]:
        """Return the next message of these kinds; heartbeats are answered on the way."""
        give_up_at = time.monotonic() + DEADLINE_S
        while time.monotonic() < give_up_at:
            if not self._socket.poll(100):
                continue
            self._peer, *frames = self._socket.recv_multipart()
            message, body = CODEC.decode(frames)
            if isinstance(message, kinds):
                return message, body
            if message.kind == "backend_heartbeat":
                self.send(BackendWelcome("desk"))
        raise AssertionError(f"none of {kinds} within {DEADLINE_S} s")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self._socket.close()
        self._context.term()


@pytest.fixture
def desk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Desk]:
    made = Desk(tmp_path, getattr(request, "param", {}))
    yield made
    made.close()


def arrays(answer: Generated, body: list[Any]) -> dict[str, Any]:
    return {
        each.name: read_buffer(each, frame)
        for each, frame in zip(answer.buffers, body, strict=True)
    }


def test_the_second_request_of_a_salt_finds_the_firsts_prompt(desk: Desk) -> None:
    cached = []
    for ticket, salt in (("a", "0"), ("b", "0"), ("c", "1")):
        desk.generate(ticket, salt=salt)
        answer, _ = desk.await_(Generated)
        cached.append(answer.cached_tokens)
    assert cached == [0, (len(PROMPT) - 1) // 16 * 16, 0]


@pytest.mark.parametrize("desk", [{"speed": 0.5}], indirect=True)
def test_an_abort_is_answered_with_the_tokens_spent(desk: Desk) -> None:
    desk.generate("a")
    desk.send(Abort(("a",)))
    stopped, _ = desk.await_(Aborted, Generated)
    assert isinstance(stopped, Aborted)
    assert stopped.request_id == "a"
    assert 0 <= stopped.tokens < 200


@pytest.mark.parametrize("desk", [{"speed": 0.2, "script": "filler"}], indirect=True)
def test_a_completion_across_an_update_has_two_spans(desk: Desk) -> None:
    desk.generate("probe", most=1)
    desk.await_(Generated)
    desk.generate("a", most=60)
    desk.send(Pause("u", "keep"))
    assert desk.await_(UpdateStep)[0] == UpdateStep("u", "pause", 0)
    desk.send(UpdateWeights("u", 3, ""))
    assert desk.await_(UpdateStep)[0] == UpdateStep("u", "update_weights", 3)
    desk.send(Resume("u"))
    assert desk.await_(UpdateStep)[0] == UpdateStep("u", "resume", 3)
    answer, body = desk.await_(Generated)
    spans = arrays(answer, body)["policy_spans"]
    assert spans[-1].tolist()[1:] == [60, 3]
    assert {version for _, _, version in spans.tolist()} <= {0, 3}
    assert spans[0][0] == 0


@pytest.mark.parametrize("desk", [{"speed": 0.05, "script": "filler"}], indirect=True)
def test_a_pause_that_aborts_delivers_what_was_sampled(desk: Desk) -> None:
    desk.generate("a", most=500)
    desk.generate("first", most=2)
    assert desk.await_(Generated)[0].request_id == "first"
    desk.send(Pause("u", "abort"))
    answer, body = desk.await_(Generated)
    found = arrays(answer, body)
    assert (answer.request_id, answer.finish_reason) == ("a", "abort")
    emitted = len(found["token_ids"])
    assert 0 < emitted < 500
    assert found["policy_spans"].tolist() == [[0, emitted, 0]]
    assert np.isfinite(found["logprobs"]).all()
    assert len(found["logprobs"]) == emitted
    assert desk.await_(UpdateStep)[0] == UpdateStep("u", "pause", 0)


FAULTS = [{"kind": kind} for kind in ("full", "error", "refuse")]


@pytest.mark.parametrize("desk", [{"faults": FAULTS}], indirect=True)
def test_failures_on_request_come_as_those_of_a_server(desk: Desk) -> None:
    codes = []
    for ticket in "abc":
        desk.generate(ticket)
        failed, _ = desk.await_(GenerateFailed)
        assert failed.retry
        codes.append(failed.code)
    assert codes == ["full", "backend_error", "draining"]
    desk.generate("d")
    assert desk.await_(Generated)[0].request_id == "d"


@pytest.mark.parametrize("desk", [{"faults": [{"kind": "hang"}]}], indirect=True)
def test_a_request_that_hangs_is_held_until_it_is_aborted(desk: Desk) -> None:
    desk.generate("a")
    desk.generate("b")
    assert desk.await_(Generated)[0].request_id == "b"
    desk.send(Abort(("a",)))
    assert desk.await_(Aborted)[0] == Aborted("a", 0)


@pytest.mark.parametrize("desk", [{"faults": [{"kind": "die", "after": 1}]}], indirect=True)
def test_a_backend_that_dies_says_nothing(desk: Desk) -> None:
    desk.generate("a")
    desk.await_(Generated)
    desk.generate("b")
    assert desk.process.wait(DEADLINE_S) == -signal.SIGKILL
