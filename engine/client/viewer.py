"""Looks at a broker without being its client: no hello, no window, nothing that the broker keeps.

Job: ask for status, again and again, over one socket.
Does not know: what the status says.
Invariants: every look has a deadline; after one that failed the next begins on a new socket, so a
broker that was away, or has moved, is found again. Any thread may look; they take turns.
"""

from pathlib import Path
from threading import Lock
from time import monotonic
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import zmq

from ..errors import AccessRefused, BrokerUnreachable
from ..messages import Problem, Status, StatusRequest
from ..security import Line, OwnKey, client_key, node_key, operator_name
from ..sockets import Bounds, boot_id, drain, open_socket, send
from ..topology import Topology, load
from ..wire import Codec, encode, read_json

POLL_MS = 100  # between two looks whether the broker takes our key
ASK_AGAIN_S = 1.0  # a broker that restarts has lost the question
TURN_S = 0.1  # between two looks at whether the broker takes our key


class Viewer:
    """A socket to the broker for status alone; `at` and `of_node` make one."""

    def __init__(self, endpoint: str, bounds: Bounds, key: OwnKey | None, name: str) -> None:
        self.endpoint = endpoint
        self._bounds = bounds
        self._key = key
        self._name = name
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._codec: Codec[Any] = Codec((Status, Problem))
        self._open: tuple[zmq.Socket[bytes], Line] | None = None
        self._lock = Lock()

    @classmethod
    def at(cls, where: str | Path) -> Self:
        """Look as an operator at the broker of a topology file.

        Raises: TopologyError if the file is wrong; KeysError if no key is there.
        """
        topology = load(Path(where))
        key = client_key(topology, operator_name(where))
        return cls(topology.endpoint("front"), _bounds(topology), key, "viewer")

    @classmethod
    def of_node(cls, topology: Topology, node: str) -> Self:
        """Look as a node of the topology, under its host's key. Raises: KeysError."""
        key = node_key(topology, topology.node(node).host)
        return cls(topology.endpoint("control"), _bounds(topology), key, node)

    def __enter__(self) -> Self:
        """Return the viewer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def look(self, timeout_s: float, rollout_id: str = "") -> dict[str, Any]:
        """Return the broker's status; with a rollout_id, that rollout under `rollout`, too.

        Raises: BrokerUnreachable if it does not answer within `timeout_s`; AccessRefused if it does
        not take our key.
        """
        deadline = monotonic() + timeout_s
        with self._lock:
            socket, line = self._open = self._open or self._connected()
            try:
                report = self._ask(socket, line, rollout_id, deadline)
            except BaseException:
                self._drop()
                raise
            if report is None:
                self._drop()
                waited = f"waited {timeout_s:g} s for the broker's status from {self.endpoint}"
                raise BrokerUnreachable(waited)
        return report

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._drop()
            self._context.destroy(linger=0)

    def _ask(
        self, socket: "zmq.Socket[bytes]", line: Line, rollout_id: str, deadline: float
    ) -> dict[str, Any] | None:
        ask_at, asked = 0.0, set()
        while (now := monotonic()) < deadline:
            if now >= ask_at:
                ask_at = now + ASK_AGAIN_S
                question = StatusRequest(uuid4().hex, rollout_id)
                asked.add(question.request_id)
                send(socket, encode(question), self._bounds.message_bytes)
            socket.poll(int(1000 * min(TURN_S, deadline - now)) + 1)
            seen = line.look(monotonic())
            if seen.refused:
                raise AccessRefused(seen.refused)
            report = self._answer(socket, asked)
            if report is not None:
                return report
        return None

    def _answer(self, socket: "zmq.Socket[bytes]", asked: set[str]) -> dict[str, Any] | None:
        for frames in drain(socket, 16):
            message, body = self._codec.decode(frames)
            if isinstance(message, Problem):
                raise AccessRefused(message.message)
            if message.request_id in asked:
                report: dict[str, Any] = read_json(message.buffers[0], body[0])
                return report
        return None

    def _connected(self) -> "tuple[zmq.Socket[bytes], Line]":
        socket = open_socket(self._context, zmq.DEALER, self._bounds, boot_id(self._name))
        return socket, Line(socket, self.endpoint, self._key)

    def _drop(self) -> None:
        if self._open is not None:
            socket, line = self._open
            line.close()
            socket.close(linger=0)
            self._open = None


def _bounds(topology: Topology) -> Bounds:
    return Bounds(topology.limits.queue_messages, topology.limits.message_bytes)
