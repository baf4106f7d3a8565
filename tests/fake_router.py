"""The router's side of a backend, played by a test: one backend process, spoken to by hand.

    with backend_process(directory, "simulator", options) as peer:
        peer.join()
        answer, arrays = peer.complete(prompt, max_tokens=8)

Every wait has a deadline and says what it waited for. Heartbeats are answered whenever it waits.
"""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zmq

from engine.arrays import array_buffer, read_buffer
from engine.process import child_environment
from engine.sockets import Bounds, bind, drain, open_socket
from engine.supervisor import BACKEND_MODULES
from engine.topology import load
from engine.wire import Codec, encode
from nodes.inference import messages as m

CODEC = Codec[m.FromBackend](m.FROM_BACKEND)
DEADLINE_S = 60.0
ROUTER_ID = "fake-router"
Found = TypeVar("Found")
Arrays = dict[str, Any]


class Peer:
    """One backend process as its router sees it."""

    def __init__(self, directory: Path, kind: str, options: Mapping[str, Any]) -> None:
        file = directory / "topology.yaml"
        backend = {"name": "b", "kind": kind, "capacity": 16, "options": dict(options)}
        timeouts = {"heartbeat_s": 0.3, "lease_s": 60, "drain_s": 30, "start_s": 240}
        settings = {
            "version": 1,
            "run_dir": "run",
            "stages": [{"name": "run"}],
            "router": {},
            "timeouts": timeouts,
            "backends": [backend],
        }
        file.write_text(json.dumps(settings))
        self.topology = load(file)
        self.backend = b""
        self.held: tuple[str, ...] = ()
        self.figures: dict[str, float] = {}
        self._seen: list[tuple[Any, Arrays]] = []
        self._tickets = (f"t-{number}" for number in itertools.count(1))
        self._context = zmq.Context()
        self._socket = open_socket(self._context, zmq.ROUTER, Bounds())
        bind(self._socket, self.topology.endpoint("router_backends"))
        command = [sys.executable, "-m", BACKEND_MODULES[kind]]
        self.process = subprocess.Popen(
            [*command, "--topology", str(file), "--name", "b-0"], env=child_environment()
        )

    def join(self) -> m.BackendHello:
        """Welcome the backend's hello, and return it."""
        hello: m.BackendHello = self.wait(m.BackendHello)
        self.tell(m.BackendWelcome(ROUTER_ID))
        return hello

    def tell(self, message: Any, body: Any = ()) -> None:
        self._socket.send_multipart([self.backend, *encode(message, body)])

    def ask(self, prompt: Any, **wish: Any) -> str:
        """Send a generate, and return its ticket."""
        buffer, body = array_buffer("token_ids", np.asarray(prompt, dtype=np.int32))
        wish = {"session": "s", "max_tokens": 16, **wish}
        ticket = next(self._tickets)
        self.tell(m.Generate(ticket, buffers=(buffer,), **wish), [body])
        return ticket

    def answer(self, ticket: str) -> tuple[Any, Arrays]:
        """Wait for the answer to a ticket."""
        kinds = (m.Generated, m.GenerateFailed, m.Aborted)
        return self._wait(
            lambda message: isinstance(message, kinds) and message.request_id == ticket,
            f"the answer to {ticket}",
        )

    def has_answer(self, ticket: str) -> bool:
        """Return whether an answer to a ticket has come that nobody took."""
        return any(getattr(message, "request_id", "") == ticket for message, _ in self._seen)

    def complete(self, prompt: Any, **wish: Any) -> tuple[m.Generated, Arrays]:
        """Ask and wait for a whole completion, whose arrays are checked."""
        message, arrays = self.answer(self.ask(prompt, **wish))
        assert isinstance(message, m.Generated), message
        check(message, arrays)
        return message, arrays

    def step(self, message: m.Pause | m.UpdateWeights | m.Resume) -> m.UpdateStep:
        """Send a step of an update and wait for its answer."""
        self.tell(message)
        found: m.UpdateStep = self._wait(
            lambda seen: (
                isinstance(seen, m.UpdateStep)
                and (seen.update_id, seen.step) == (message.update_id, message.kind)
            ),
            f"the answer to {message.kind}",
        )[0]
        return found

    def wait(self, kind: type[Any]) -> Any:
        """Wait for a message of a kind that was not looked at yet."""
        return self._wait(lambda message: isinstance(message, kind), kind.__name__)[0]

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something that heartbeats tell is so."""
        give_up_at = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < give_up_at, f"not within {DEADLINE_S:g} s: {what}"
            self._receive()

    def quiet(self, beats: int) -> list[Any]:
        """Return what comes, but for heartbeats, until so many of these have come."""
        count, before = 0, len(self._seen)
        give_up_at = time.monotonic() + DEADLINE_S
        while count < beats:
            assert time.monotonic() < give_up_at, "no heartbeats"
            count += self._receive()
        return [message for message, _ in self._seen[before:]]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._socket.close()
        self._context.term()

    def _wait(self, fits: Callable[[Any], bool], what: str) -> tuple[Any, Arrays]:
        give_up_at = time.monotonic() + 4 * DEADLINE_S
        while True:
            for at, (message, _) in enumerate(self._seen):
                if fits(message):
                    return self._seen.pop(at)
            assert time.monotonic() < give_up_at, f"{what} did not come; seen: {self._seen}"
            assert self.process.poll() in {None, 0}, f"the backend ended while waiting for {what}"
            self._receive()

    def _receive(self) -> int:
        """Take what is there; return how many heartbeats were among it."""
        self._socket.poll(50)
        beats = 0
        for peer, *frames in drain(self._socket, 100):
            message, body = CODEC.decode(frames)
            if isinstance(message, m.BackendHeartbeat):
                beats += 1
                self.held, self.figures = message.held, message.figures
                self.tell(m.BackendWelcome(ROUTER_ID))
            else:
                if isinstance(message, m.BackendHello):
                    self.backend = peer
                self._seen.append((message, _arrays(message, body)))
        return beats


def _arrays(message: Any, body: list[Any]) -> Arrays:
    buffers = getattr(message, "buffers", ())
    return {
        buffer.name: read_buffer(buffer, frame) for buffer, frame in zip(buffers, body, strict=True)
    }


def check(message: m.Generated, arrays: Arrays) -> None:
    """Check what every completion promises."""
    ids, logprobs, spans = arrays["token_ids"], arrays["logprobs"], arrays["policy_spans"]
    assert (ids.dtype, logprobs.dtype, spans.dtype) == (np.int32, np.float32, np.int32)
    assert ids.shape == logprobs.shape
    assert np.isfinite(logprobs).all()
    assert (logprobs <= 0).all()
    assert (logprobs > -1000).all()
    ends = [0, *spans[:, 1].tolist()]
    assert spans[:, 0].tolist() == ends[:-1]
    assert ends[-1] == len(ids)


@contextmanager
def backend_process(directory: Path, kind: str, options: Mapping[str, Any]) -> Iterator[Peer]:
    """Start a backend, and stop it at the end."""
    peer = Peer(directory, kind, options)
    try:
        yield peer
    finally:
        peer.close()
