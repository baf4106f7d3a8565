"""A backend's connection to the router.

Job: say hello and heartbeats, hand over what the router asks for, and send answers.
Does not know: how a completion is made.
Invariants: `Reset` comes before anything of another router, or after the router had given this
backend up: everything taken before it is to be dropped unanswered. A router that is not heard for
lease_s is connected to anew, as a new boot.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import zmq

from engine.errors import RemoteProtocolError
from engine.logs import get_logger
from engine.security import Line, node_key
from engine.sockets import Bounds, Outbox, boot_id, drain, open_socket
from engine.topology import Topology
from engine.wire import Codec, encode

from ..inference.messages import (
    TO_BACKEND,
    Abort,
    Aborted,
    BackendDrain,
    BackendGoodbye,
    BackendHeartbeat,
    BackendHello,
    BackendHelloAgain,
    BackendRefused,
    BackendWelcome,
    Generate,
    Generated,
    GenerateFailed,
    Pause,
    Release,
    Resume,
    ToBackend,
    UpdateStep,
    UpdateWeights,
)
from ..inference.refused import Refusals

CODEC = Codec[ToBackend](TO_BACKEND)
LINGER_MS = 1000


@dataclass(frozen=True, slots=True)
class Reset:
    """The router has nothing of this backend: drop everything."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a backend serves."""

    model: str
    capacity: int


Request = Generate | Abort | Release | Pause | UpdateWeights | Resume | Reset
Asked = tuple[Request, list[Any]]
Answer = Generated | GenerateFailed | Aborted | UpdateStep


class RouterLink:
    """One DEALER to the router's side for backends."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        topology: Topology,
        node: str,
        offer: Offer,
    ) -> None:
        self.policy_version = 0
        self.refusals = Refusals()
        self._context = context
        self._endpoint = topology.endpoint("router_backends")
        self._node = node
        self._key = node_key(topology, topology.host_of(node))
        self._offer = offer
        queue = max(topology.limits.queue_messages, 2 * offer.capacity)
        self._bounds = Bounds(queue, topology.limits.message_bytes)
        self._heartbeat_s = topology.timeouts.heartbeat_s
        self._lost_after_s = topology.timeouts.lease_s
        self._log = get_logger()
        self._heard_at: float | None = None
        self._next_at = 0.0
        self._connect()

    def receive(self, now: float) -> Iterator[Asked]:
        """Yield what the router asks for; `now` is in seconds."""
        if self._heard_at is None:
            self._heard_at = now
        for frames in drain(self.socket, 256, copy=False):
            self._heard_at = now
            try:
                message, body = CODEC.decode(frames)
            except RemoteProtocolError as wrong:
                self.refusals.add(str(wrong), now)
                continue
            yield from self._take(message, body)
        if now - self._heard_at > self._lost_after_s:
            self._log.warning("router not heard, connecting anew", endpoint=self._endpoint)
            self._disconnect()
            self._connect()
            yield Reset(), []

    def beat(self, now: float, held: tuple[str, ...], figures: dict[str, float]) -> None:
        """Say that this backend is alive, if it is time; `held` are the tickets in work."""
        self.outbox.flush()
        self.refusals.tell(now)
        seen = self._line.look(now)
        if seen.refused:
            self._log.error("refused by the router", reason=seen.refused)
        if now < self._next_at:
            return
        self._next_at = now + self._heartbeat_s
        if self._router_id:
            self.send(BackendHeartbeat(self.boot, held, self.policy_version, figures))
        else:
            self._hello()

    def send(self, message: Any, body: Sequence[Any] = ()) -> None:
        """Send now, or as soon as the pipe has room."""
        self.outbox.send(encode(message, body))

    def answer(self, message: Answer, body: Sequence[Any] = ()) -> None:
        """Answer a ticket or a step of an update."""
        self.send(message, body)

    def drain(self) -> None:
        """Ask for no new session."""
        self.send(BackendDrain(self.boot))

    def close(self) -> None:
        """Say goodbye and close."""
        self.send(BackendGoodbye(self.boot))
        self._disconnect(LINGER_MS)

    def _connect(self) -> None:
        self.boot = boot_id(self._node)
        self.socket = open_socket(self._context, zmq.DEALER, self._bounds, self.boot)
        self._line = Line(self.socket, self._endpoint, self._key)
        self.outbox = Outbox(self.socket, self._bounds)
        self._router_id = ""
        self._heard_at = None
        self._next_at = 0.0

    def _disconnect(self, linger_ms: int = 0) -> None:
        self._line.close()
        self.socket.close(linger=linger_ms)

    def _hello(self) -> None:
        offer = self._offer
        self.send(
            BackendHello(self.boot, self._node, offer.model, offer.capacity, self.policy_version)
        )

    def _take(self, message: ToBackend, body: list[Any]) -> Iterator[Asked]:
        match message:
            case BackendWelcome(router_id):
                if self._router_id not in {"", router_id}:
                    yield Reset(), []
                self._router_id = router_id
            case BackendHelloAgain():
                yield Reset(), []
                self._router_id = ""
                self._hello()
            case BackendRefused(_, reason):
                self._log.error("refused by the router", reason=reason)
            case _:
                yield message, body
