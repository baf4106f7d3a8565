"""One boot of a vllm backend: the router on one side, one life of a server on the other.

Job: carry each ticket to the server and its answer back, stop what is aborted, and notice when the
server is gone.
Does not know: how a server is started, or what comes after this boot.
Invariants: every ticket is answered, or was aborted, or the router gave this backend up, or the
server is gone; then nothing is answered and `lost` says why. A completion leaves whole and aligned.
"""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from engine.arrays import array_buffer
from engine.logs import get_logger

from ...inference.messages import (
    Abort,
    Aborted,
    Generate,
    Generated,
    GenerateFailed,
    Pause,
    Release,
    Resume,
    UpdateStep,
    UpdateWeights,
)
from ..link import Request, Reset
from ..link_async import AsyncRouterLink
from ..prompt import read_prompt
from .http import HttpFailed, Unreachable, VllmHttp
from .updates import Updates, Weights
from .wire import BadReply, Failure, Ids, Reply, Served, Versions, read_reply, write_request

ABORT_AGAIN_S = 0.5  # an abort may overtake its request, and then does nothing
ABORT_WITHIN_S = 10.0
LOOK_AGAIN_S = 0.2
WATCH_S = 1.0


@dataclass(slots=True)
class Counts:
    """What a backend has done over all its boots."""

    requests: int = 0
    failed: int = 0
    aborted: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True, eq=False)
class _Open:
    prompt_tokens: int
    is_aborted: bool = False
    task: "asyncio.Task[None] | None" = None
    stopping: "asyncio.Task[None] | None" = None


@dataclass(slots=True, eq=False)
class Site:
    """What a boot works with."""

    http: VllmHttp
    served: Served
    node: str
    weights: Weights
    counts: Counts = field(default_factory=Counts)
    silence_s: float = 30.0


class Serving:
    """Tickets in work, and a watch on the server."""

    def __init__(self, site: Site) -> None:
        self.figures: dict[str, float] = {}
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._site = site
        self._http = site.http
        self._open: dict[str, _Open] = {}
        self._updates = Updates(site.http, site.weights, self._answer_step)
        self._log = get_logger()
        self._link: AsyncRouterLink | None = None
        self._watching = self._begin(self._watch())

    @property
    def tickets(self) -> tuple[str, ...]:
        """The tickets without an answer."""
        return tuple(self._open)

    def attach(self, link: AsyncRouterLink) -> None:
        """Answer over this link from now on."""
        self._link = link

    def take(self, message: Request, body: list[Any]) -> None:
        """Do what the router asks for."""
        match message:
            case Generate():
                self._generate(message, body)
            case Abort(tickets):
                for ticket in tickets:
                    self._abort(ticket)
            case Pause() | UpdateWeights() | Resume():
                self._updates.take(message)
            case Reset():
                self._drop()
            case Release():
                pass

    async def finish(self, limit_s: float) -> None:
        """Wait until nothing is in work, for so long at most."""
        give_up_at = time.monotonic() + limit_s
        while self._open and not self.lost.done():
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                return
            running = [opened.task for opened in self._open.values() if opened.task is not None]
            waited: list[asyncio.Future[Any]] = [*running, self.lost]
            await asyncio.wait(waited, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    async def close(self) -> None:
        """Give up whatever is not over; the server aborts it when its connections close."""
        self._watching.cancel()
        self._updates.cancel()
        self._drop()
        await asyncio.gather(self._watching, return_exceptions=True)

    def _generate(self, message: Generate, body: list[Any]) -> None:
        if message.request_id in self._open:
            return
        try:
            prompt = read_prompt(message, body)
        except ValueError as wrong:
            self._fail(message.request_id, Failure("invalid", str(wrong), retry=False))
            return
        limit = self._site.served.context_tokens
        if len(prompt) >= limit:
            why = f"{len(prompt)} tokens, with a context of {limit}"
            self._fail(message.request_id, Failure("too_long", why, retry=False))
            return
        opened = self._open[message.request_id] = _Open(len(prompt))
        opened.task = self._begin(self._complete(message, prompt))

    async def _complete(self, message: Generate, prompt: Ids) -> None:
        ticket, began, weights = message.request_id, time.monotonic(), self._site.weights
        version = weights.version
        try:
            body = await self._http.generate(write_request(message, prompt, self._site.served))
            reply = read_reply(body, Versions(version, weights.version))
        except Unreachable as wrong:
            if not await self._is_lost(str(wrong)):
                self._fail(ticket, Failure("backend_error", str(wrong), retry=True))
        except HttpFailed as wrong:
            if wrong.status < 500 or not await self._is_lost(str(wrong)):
                self._fail(ticket, wrong.failure)
        except (BadReply, TimeoutError) as wrong:
            self._fail(ticket, Failure("backend_error", str(wrong), retry=True))
        else:
            self._deliver(ticket, reply, time.monotonic() - began)

    def _deliver(self, ticket: str, reply: Reply, seconds: float) -> None:
        opened, counts = self._open.pop(ticket, None), self._site.counts
        counts.tokens += len(reply.token_ids)
        if opened is None:
            return
        counts.prompt_tokens += opened.prompt_tokens
        counts.cached_tokens += reply.cached_tokens
        if opened.is_aborted:
            self._answer_aborted(ticket, len(reply.token_ids))
            return
        counts.requests += 1
        arrays = {
            "token_ids": reply.token_ids,
            "logprobs": reply.logprobs,
            "policy_spans": reply.policy_spans,
        }
        buffers, frames = zip(*(array_buffer(*each) for each in arrays.items()), strict=True)
        message = Generated(
            ticket,
            reply.finish_reason,
            reply.cached_tokens,
            self._site.node,
            queue_s=0.0,  # the server's answer does not divide its time
            prefill_s=0.0,
            decode_s=seconds,
            buffers=buffers,
        )
        self._send(message, frames)

    def _fail(self, ticket: str, failure: Failure) -> None:
        opened = self._open.pop(ticket, None)
        if opened is not None and opened.is_aborted:
            self._answer_aborted(ticket, 0)
            return
        self._site.counts.failed += 1
        self._log.warning("request failed", ticket=ticket, code=failure.code, why=failure.message)
        self._send(GenerateFailed(ticket, failure.code, failure.message, failure.retry))

    def _abort(self, ticket: str) -> None:
        opened = self._open.get(ticket)
        if opened is None or opened.is_aborted:
            return
        opened.is_aborted = True
        opened.stopping = self._begin(self._stop(ticket, opened))

    async def _stop(self, ticket: str, opened: _Open) -> None:
        assert opened.task is not None
        give_up_at = time.monotonic() + ABORT_WITHIN_S
        while ticket in self._open and time.monotonic() < give_up_at:
            try:
                await self._http.abort(ticket)
            except (Unreachable, HttpFailed, TimeoutError) as wrong:
                self._log.warning("abort failed", ticket=ticket, why=str(wrong))
            await asyncio.wait({opened.task}, timeout=ABORT_AGAIN_S)
        if self._open.pop(ticket, None) is not None:
            self._log.warning("abort without an answer; the tokens are not known", ticket=ticket)
            opened.task.cancel()
            self._answer_aborted(ticket, 0)

    def _answer_aborted(self, ticket: str, tokens: int) -> None:
        self._site.counts.aborted += 1
        self._send(Aborted(ticket, tokens))

    def _answer_step(self, answer: UpdateStep) -> None:
        if self._link is not None:
            self._link.policy_version = self._site.weights.version
        self._send(answer)

    def _send(self, message: Any, body: Any = ()) -> None:
        if self._link is not None and not self.lost.done():
            self._link.answer(message, body)

    def _drop(self) -> None:
        for opened in self._open.values():
            for task in (opened.task, opened.stopping):
                if task is not None:
                    task.cancel()
        self._open.clear()

    async def _watch(self) -> None:
        heard_at = time.monotonic()
        while not self.lost.done():
            try:
                await self._http.health()
                heard_at = time.monotonic()
                self.figures = await self._http.figures()
            except (Unreachable, HttpFailed) as wrong:
                await self._is_lost(str(wrong))
            except TimeoutError as wrong:
                if time.monotonic() - heard_at > self._site.silence_s:
                    self._lose(str(wrong))
            await asyncio.sleep(WATCH_S)

    def _begin(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._look_at)
        return task

    def _look_at(self, task: "asyncio.Task[None]") -> None:
        """Let what nobody foresaw end the process, not leave a ticket open for ever."""
        wrong = None if task.cancelled() else task.exception()
        if wrong is not None and not self.lost.done():
            self.lost.set_exception(wrong)

    async def _is_lost(self, why: str) -> bool:
        """Look twice whether the server is gone, and say so; a silent one is not gone yet."""
        for _ in range(2):
            if self.lost.done():
                return True
            try:
                await self._http.health()
            except TimeoutError:
                return False
            except (Unreachable, HttpFailed):
                await asyncio.sleep(LOOK_AGAIN_S)
            else:
                return False
        self._lose(why)
        return True

    def _lose(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)
