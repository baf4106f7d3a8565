"""The policy as a run handler sees it: one connection to the inference router.

Job: turn `generate` into one request that is answered, failed or given up at its deadline, whatever
happens to the router meanwhile.
Does not know: backends and where a session is.
Invariants: every request has an id of its own, so asking twice is asking once. The router is asked
every heartbeat which requests it has, and what it does not have is sent again; a ping older than
the request cannot tell. A router that is not heard for `lost_after_s` is connected to anew, under a
fresh routing id. A task that is cancelled aborts its request, and `settle` says what that request
had sampled, 0 if nobody says so in time. No answer is lost to a cancel or a
timeout: the pump receives, nobody awaits a socket. A completion whose log-probabilities are
missing, not finite or above 0 never leaves this module.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

from engine.arrays import array_buffer
from engine.errors import BoundaryError, LocalProtocolError, RemoteProtocolError
from engine.logs import get_logger
from engine.records import Buffer
from engine.security import LOOK_S, Line, OwnKey, node_key
from engine.sockets import Bounds, Pump, boot_id, open_socket
from engine.topology import Topology
from engine.wire import Codec, encode

from ..tasks import Generation, Sampling
from .alignment import read_completion, sampled_tokens
from .messages import (
    TO_RUN_WORKER,
    Abort,
    Aborted,
    Generate,
    Generated,
    GenerateFailed,
    Release,
    RouterPing,
    RouterPong,
    ToRunWorker,
)
from .refused import Refusals

CODEC = Codec[ToRunWorker](TO_RUN_WORKER)
RETRY_S = 0.2  # between two tries of a request that the router refused for now


@dataclass(frozen=True, slots=True)
class Patience:
    """How often to ask for the router, and when to give up, in seconds.

    abort_s bounds the wait for the count of an aborted request.
    """

    heartbeat_s: float
    lost_after_s: float
    deadline_s: float
    abort_s: float = 1.0


@dataclass(slots=True, eq=False)
class _Open:
    frames: list[Any]
    answer: "asyncio.Future[Generation | GenerateFailed]"
    sent_after: int  # the last ping before it was sent; only later ones can tell of it


class RouterModel:
    """A `Model` behind the router; make it inside the loop that uses it, and close it."""

    def __init__(
        self,
        endpoint: str,
        node: str,
        bounds: Bounds,
        patience: Patience,
        key: OwnKey | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._node = node
        self._bounds = bounds
        self._patience = patience
        self._key = key
        self._refused = ""  # why the router does not take our key
        self._open: dict[str, _Open] = {}
        self._aborts: dict[str, asyncio.Future[int]] = {}
        self._aborted: dict[str, list[asyncio.Future[int]]] = {}  # by session
        self._stopped: list[str] = []  # requests that the router is not yet told to stop
        self._released: list[str] = []  # sessions, the same
        self._telling: asyncio.Handle | None = None
        boot = boot_id(node)
        self._ids = (f"{boot}.{n}" for n in itertools.count(1))
        self._log = get_logger()
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self.refusals = Refusals()
        self.resent = 0
        self._pings = 0
        self._pump = self._connect(boot)
        self._pinging = self._loop.create_task(self._ping())

    async def generate(
        self, session: str, token_ids: npt.NDArray[np.int32], sampling: Sampling
    ) -> Generation:
        """Sample a completion of `token_ids`, int32 [n].

        Raises: BoundaryError("backend") if no backend answered in time or none can.
        """
        limit_s = self._patience.deadline_s
        buffer, body = array_buffer("token_ids", np.asarray(token_ids, dtype=np.int32))
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    message = _request(next(self._ids), session, sampling, buffer)
                    answer = await self._ask(message, [body])
                    if isinstance(answer, Generation):
                        return answer
                    if answer.code not in {"full", "draining"}:
                        failure = f"{answer.code}: {answer.message}"
                        raise BoundaryError("backend", failure, retry=answer.retry)
                    await asyncio.sleep(RETRY_S)
        except TimeoutError:
            message_ = f"no completion within {limit_s:g} s; {self._silence()}"
            raise BoundaryError("backend", message_) from None

    def wait_as(self, patience: Patience) -> None:
        """Wait by other times from the next request on."""
        self._patience = patience

    async def release(self, session: str) -> None:
        """End a session; its backend may forget it."""
        self._released.append(session)
        self._tell_soon()

    async def settle(self, session: str) -> int:
        """Return the tokens that the session's aborted requests had sampled.

        Waits for the backend to say so, `abort_s` after the abort at most.
        """
        counts = self._aborted.pop(session, None)
        return sum(await asyncio.gather(*counts)) if counts else 0

    async def close(self) -> None:
        """Abort what is open and close the connection."""
        self._pinging.cancel()
        await asyncio.gather(self._pinging, return_exceptions=True)
        for opened in self._open.values():
            opened.answer.cancel()
        for count in self._aborts.values():
            _settle(count, 0)
        self._tell_ended()
        self._line.close()
        self._pump.close()
        self._context.term()

    async def _ask(self, message: Generate, body: list[Any]) -> Generation | GenerateFailed:
        opened = _Open(encode(message, body), self._loop.create_future(), self._pings)
        self._open[message.request_id] = opened
        try:
            self._send(opened.frames)
            return await opened.answer
        finally:
            del self._open[message.request_id]
            if opened.answer.cancelled() and not self._pump.socket.closed:
                self._abort(message)

    def _abort(self, message: Generate) -> None:
        self._stopped.append(message.request_id)
        self._tell_soon()
        count: asyncio.Future[int] = self._loop.create_future()
        self._aborts[message.request_id] = count
        self._aborted.setdefault(message.session, []).append(count)
        late = self._loop.call_later(self._patience.abort_s, _settle, count, 0)
        count.add_done_callback(lambda _: self._end_abort(message.request_id, late))

    def _tell_soon(self) -> None:
        """Tell the router once for all that end together: a cancel ends hundreds at a time."""
        if self._telling is None:
            self._telling = self._loop.call_soon(self._tell_ended)

    def _tell_ended(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        stopped, self._stopped = tuple(self._stopped), []
        released, self._released = tuple(self._released), []
        if stopped:
            self._pump.send(encode(Abort(stopped)))
        if released:
            self._pump.send(encode(Release(released)))

    def _end_abort(self, request_id: str, late: asyncio.TimerHandle) -> None:
        late.cancel()
        self._aborts.pop(request_id, None)

    def _send(self, frames: list[Any]) -> None:
        self._tell_ended()  # what is asked for now may be of a session that was released before
        try:
            self._pump.send(frames)
        except LocalProtocolError as wrong:
            raise BoundaryError("backend", str(wrong), retry=False) from None

    def _connect(self, identity: str) -> Pump:
        self._heard_at = self._loop.time()
        self._misses = 0
        socket = open_socket(self._context, zmq.DEALER, self._bounds, identity)
        self._line = Line(socket, self._endpoint, self._key)
        return Pump(socket, self._receive, self._bounds, copy=False)

    def _receive(self, batch: Iterable[list[Any]]) -> None:
        self._heard_at = self._loop.time()
        self._misses = 0
        self._refused = ""
        for frames in batch:
            try:
                self._take(*CODEC.decode(frames))
            except RemoteProtocolError as wrong:
                self.refusals.add(str(wrong), self._heard_at)

    def _take(self, message: ToRunWorker, body: list[Any]) -> None:
        if isinstance(message, RouterPong):
            self._send_again(message.number, message.unknown)
            return
        count = self._aborts.get(message.request_id)
        if count is not None:
            _settle(count, _spent(message))
            return
        opened = self._open.get(message.request_id)
        if opened is None or opened.answer.done() or isinstance(message, Aborted):
            return
        if isinstance(message, GenerateFailed):
            opened.answer.set_result(message)
            return
        try:
            opened.answer.set_result(read_completion(message, body))
        except ValueError as wrong:
            opened.answer.set_exception(BoundaryError("backend", f"{message.backend}: {wrong}"))

    def _send_again(self, ping: int, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            opened = self._open.get(request_id)
            if opened is not None and not opened.answer.done() and opened.sent_after < ping:
                opened.sent_after = self._pings
                self.resent += 1
                self._pump.send(opened.frames)

    async def _ping(self) -> None:
        while True:
            self._pings += 1
            self.refusals.tell(self._loop.time())
            self._pump.send(encode(RouterPing(self._pings, tuple(self._open))))
            await self._wait(self._patience.heartbeat_s)
            self._misses += 1  # counted, not timed: a loop that stood still has heard nobody
            if self._misses * self._patience.heartbeat_s > self._patience.lost_after_s:
                self._log.warning("router not heard, connecting anew", endpoint=self._endpoint)
                self._line.close()
                self._pump.close()
                self._pump = self._connect(boot_id(self._node))

    async def _wait(self, seconds: float) -> None:
        """Sleep, and look whether the router refuses us: that is to be known within two seconds."""
        until = self._loop.time() + seconds
        while (left_s := until - self._loop.time()) > 0:
            self._look()
            await asyncio.sleep(min(LOOK_S, left_s))

    def _look(self) -> None:
        seen = self._line.look(self._loop.time())
        if seen.refused:
            self._refused = seen.refused
            self._log.error("refused by the router", error=seen.refused)

    def _silence(self) -> str:
        silence_s = self._loop.time() - self._heard_at
        told = f"; {self._refused}" if self._refused else ""
        return f"the router was last heard {silence_s:.1f} s ago{told}"


class LazyModel:
    """A `Model` that connects at its first use: most stages never ask for a completion."""

    def __init__(self, connect: Callable[[], RouterModel]) -> None:
        self._connect = connect
        self._model: RouterModel | None = None

    async def generate(
        self, session: str, token_ids: npt.NDArray[np.int32], sampling: Sampling
    ) -> Generation:
        """Sample a completion; see RouterModel. Raises: BoundaryError("backend")."""
        if self._model is None:
            self._model = self._connect()
        return await self._model.generate(session, token_ids, sampling)

    def wait_as(self, patience: Patience) -> None:
        """Wait by other times from the next request on."""
        if self._model is not None:
            self._model.wait_as(patience)

    async def release(self, session: str) -> None:
        """End a session; there is none before the first completion."""
        if self._model is not None:
            await self._model.release(session)

    async def settle(self, session: str) -> int:
        """Return what the session's aborted requests had sampled; see RouterModel."""
        return 0 if self._model is None else await self._model.settle(session)

    async def close(self) -> None:
        """Abort what is open and close the connection, if there is one."""
        model, self._model = self._model, None
        if model is not None:
            await model.close()


def connect(topology: Topology, node: str, deadline_s: float) -> RouterModel:
    """Return a model behind the topology's router, for a node of it; needs a running loop."""
    bounds = Bounds(topology.limits.queue_messages, topology.limits.message_bytes)
    patience = patience_of(topology, deadline_s)
    key = node_key(topology, topology.node(node).host)
    return RouterModel(topology.endpoint("router"), node, bounds, patience, key)


def patience_of(topology: Topology, deadline_s: float) -> Patience:
    """Return how long a model behind the topology's router waits for what."""
    timeouts = topology.timeouts
    return Patience(timeouts.heartbeat_s, timeouts.lease_s, deadline_s, timeouts.cancel_grace_s / 2)


def _request(request_id: str, session: str, sampling: Sampling, buffer: Buffer) -> Generate:
    return Generate(
        request_id,
        session,
        sampling.max_tokens,
        (buffer,),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop_token_ids=sampling.stop_token_ids,
        seed=sampling.seed,
    )


def _settle(count: "asyncio.Future[int]", tokens: int) -> None:
    if not count.done():
        count.set_result(tokens)


def _spent(message: Generated | GenerateFailed | Aborted) -> int:
    match message:
        case Generated():
            return sampled_tokens(message)
        case Aborted(_, tokens):
            return tokens
        case GenerateFailed():
            return 0
