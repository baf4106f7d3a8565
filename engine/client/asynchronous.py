"""The trainer's client for asyncio: the same core, pumped by the event loop.

async with AsyncClient("topology.yaml", client_id="trainer-0") as client:
    await client.submit(Task("t-1", "reasoning", {...}), group_size=8)
    async for rollout in client.rollouts():
        ...
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ..errors import BrokerUnreachable, ClientError, Full, NodeRefused, RollmqError
from ..messages import TO_TRAINER, Cancelled
from ..records import BackendState, Published, Task
from ..sampling import Over, Staleness
from ..sockets import Pump
from ..trajectories import Rollout
from ..wire import Codec, encode
from . import fleet
from .core import Core, Question
from .feed import Feed, answered
from .front import Front
from .groups import Groups
from .requests import cancel_message, status_message, submit_message
from .sampling import Batch, Sampling, spec_of
from .times import CLOSE_S, SLACK_S

Answer = TypeVar("Answer")

TICK_S = 0.02
PROMPT_S = 0.001  # the longest wait for a prompt that was just asked for


class AsyncClient:
    """A trainer's connection to the broker, for one event loop; see Client for the arguments."""

    def __init__(
        self,
        where: str | Path,
        client_id: str | None = None,
        *,
        window: int = 256,
        connect_s: float = 10.0,
        patience_s: float = 60.0,
        key: str | None = None,
    ) -> None:
        self._front = Front(where, key)
        self._endpoint, self._bounds = self._front.endpoint, self._front.bounds
        self.client_id = self._front.client_id(client_id)
        self._connect_s = connect_s
        self._core = Core(self.client_id, window, patience_s)
        self._core.message_bytes = self._bounds.message_bytes
        self._groups = Groups()
        self._taken: list[int] = []  # of what the caller works on: acknowledged when it comes back
        self._codec: Codec[Any] = Codec(TO_TRAINER)
        self._changed = asyncio.Event()
        self._failure: RollmqError | None = None

    async def __aenter__(self) -> Self:
        """Connect and wait for the broker's welcome.

        Raises: BrokerUnreachable; KeysError; AccessRefused.
        """
        socket = self._front.connect(self.client_id)
        self._pump = Pump(socket, self._receive, self._bounds, copy=False)
        self._core.start(time.monotonic())
        self._ticking = asyncio.create_task(self._tick())
        try:
            await self._wait(lambda: self._core.welcome is not None, self._connect_s, "a welcome")
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the client."""
        await self.close()

    async def submit(
        self,
        task: Task,
        group_size: int = 1,
        *,
        group_id: str | None = None,
        rollout_ids: Sequence[str] | None = None,
        priority: int = 0,
        wait: bool = True,
        timeout_s: float = 300.0,
    ) -> tuple[str, ...]:
        """Submit one group; return its rollout ids once the broker has journalled them.

        Raises: Full, Refused, BrokerUnreachable, ValueError: as Client.submit.
        """
        message, body = submit_message(task, group_size, group_id, rollout_ids, priority)
        submission = self._core.submit(message, body, wait=wait)
        self._turn()
        try:
            await self._wait(lambda: answered(submission), timeout_s, "room for a submit")
        except BrokerUnreachable as silence:
            self._core.give_up(submission)
            if self._core.welcome is None:
                raise
            raise Full(f"no room for {timeout_s:g} s") from silence
        return submission.message.rollout_ids

    async def submit_all(self, tasks: Iterable[Task], group_size: int = 1) -> None:
        """Submit many groups, one after the other as there is room. Raises: as `submit`."""
        for task in tasks:
            await self.submit(task, group_size)

    async def rollouts(self) -> AsyncIterator[Rollout]:
        """Iterate rollouts as they end, until the broker owes none. Raises: as Client.rollouts."""
        while (rollout := await self._next()) is not None:
            self._taken = [rollout.seq]
            yield rollout
        self._turn()

    async def groups(self) -> AsyncIterator[list[Rollout]]:
        """Iterate whole groups as their last member ends; see Client.groups."""
        while (rollout := await self._next()) is not None:
            group = self._groups.add(rollout)
            if group is None:
                self._core.hold(rollout.seq)
            else:
                self._taken = [member.seq for member in group]
                yield group
        for group in self._groups.rest():
            self._taken = [member.seq for member in group]
            yield group
            self._acknowledge_taken()
        self._turn()

    async def run(
        self,
        tasks: Iterable[Task],
        group_size: int = 1,
        *,
        in_flight: int | None = None,
        group_id: Callable[[Task], str] | None = None,
    ) -> AsyncIterator[Rollout]:
        """Submit tasks as the broker has room, and iterate rollouts as they end; see Client.run.

        Raises: as `submit` and `rollouts`.
        """
        feed = Feed(self._core, tasks, group_size, in_flight, group_id)
        while True:
            if feed.submit():
                self._turn()
            if self._core.results:
                rollout = self._core.results.popleft()
                self._taken = [rollout.seq]
                yield rollout
                self._acknowledge_taken()
            elif feed.is_over:
                return
            else:
                self._core.settle(time.monotonic())
                await self._changes(TICK_S)

    async def sample(
        self,
        tasks: Iterable[Task],
        groups: int,
        group_size: int,
        *,
        keep: str | tuple[str, dict[str, float]] = "dapo",
        over: Over = "cancel",
        ahead: int = 0,
        members: int = 0,
        staleness: Staleness = "none",
        staleness_bound: int = 1,
        stop_early: bool = False,
        margin: float = 0.0,
        in_flight: int = 0,
        sampling_id: str | None = None,
        source_patience_s: float = 300.0,
    ) -> AsyncIterator[Batch]:
        """Iterate batches of `groups` groups that a filter kept; see Client.sample.

        Raises: as Client.sample.
        """
        spec = spec_of(
            *(groups, group_size, keep, over, ahead, members, staleness, staleness_bound),
            stop_early=stop_early,
            margin=margin,
            in_flight=in_flight,
        )
        sampling = Sampling(self._core, tasks, spec, sampling_id, source_patience_s)
        try:
            while not sampling.is_over:
                batch = sampling.batch()
                if batch is not None:
                    yield batch
                    sampling.take()
                else:
                    await self._changes(TICK_S)
        finally:
            sampling.finish()
            if not self._pump.socket.closed:
                self._send_all()

    async def close_sampling(self, sampling_id: str) -> None:
        """Cancel what is open of a sampling that was left; see Client.close_sampling."""
        self._core.end_sampling(sampling_id)
        self._turn()

    async def cancel(
        self,
        rollout_ids: Sequence[str] = (),
        *,
        group_ids: Sequence[str] = (),
        everything: bool = False,
        client_id: str = "",
        timeout_s: float = 60.0,
    ) -> Cancelled:
        """Cancel, and return the receipts once everything named is over. Raises: as Client."""
        message = cancel_message(rollout_ids, group_ids, everything=everything, client_id=client_id)
        question = self._core.ask(f"cancel {message.cancel_id}", message)
        answer = await self._answer(question, timeout_s, "the receipts of a cancel")
        assert isinstance(answer, Cancelled)
        return answer

    async def status(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """Return the broker's state. Raises: BrokerUnreachable."""
        message = status_message()
        question = self._core.ask(f"status {message.request_id}", message)
        report: dict[str, Any] = await self._answer(question, timeout_s, "the broker's status")
        return report

    async def publish(
        self,
        version: int,
        source: str = "",
        *,
        put: Callable[[], Awaitable[None]] | None = None,
        mode: fleet.PauseMode = "keep",
        timeout_s: float = 300.0,
    ) -> Published:
        """Bring every inference backend to new weights while rollouts go on.

        source: where a backend loads them from; empty: only the version is new.
        put: instead of a source, called once every backend has paused: the trainer's own transfer.
        mode: whether running requests are frozen (`keep`), waited for, or aborted.

        Raises: NodeRefused if not all backends could, and the former weights are in use again;
        BrokerUnreachable; whatever `put` raises, after the backends went on without it.
        """
        limit_s = timeout_s + SLACK_S
        if put is None:
            return await self._ask(fleet.publish(version, source, mode, timeout_s), limit_s)
        update_id = await self._ask(fleet.pause(version, mode, timeout_s), limit_s)
        try:
            await put()
        except BaseException as wrong:
            why = f"{type(wrong).__name__}: {wrong}"
            with contextlib.suppress(NodeRefused):
                await self._ask(fleet.put(version, update_id, why), limit_s)
            raise
        return await self._ask(fleet.put(version, update_id), limit_s)

    async def backends(self, timeout_s: float = 10.0) -> tuple[BackendState, ...]:
        """Return how every inference backend is. Raises: NodeRefused, BrokerUnreachable."""
        return await self._ask(fleet.backends(), timeout_s)

    async def add_backend(
        self,
        where: str | dict[str, Any],
        *,
        kind: str = "vllm",
        name: str = "",
        capacity: int = 64,
        timeout_s: float = 10.0,
    ) -> tuple[BackendState, ...]:
        """Add an inference backend, which the router starts and keeps up; return all of them.

        where: its URL, or the options of its kind. name: chosen by the router if empty.

        Raises: NodeRefused, BrokerUnreachable.
        """
        wish = fleet.add(name, kind, fleet.options_of(where), capacity)
        return await self._ask(wish, timeout_s)

    async def drain_backend(
        self, name: str, *, undo: bool = False, timeout_s: float = 10.0
    ) -> tuple[BackendState, ...]:
        """Place no new session on a backend, or place them again; what is open goes on.

        Raises: NodeRefused, BrokerUnreachable.
        """
        return await self._ask(fleet.drain(name, undo=undo), timeout_s)

    async def remove_backend(self, name: str, timeout_s: float = 10.0) -> tuple[BackendState, ...]:
        """Use a backend no more; what is open on it goes elsewhere at once.

        Raises: NodeRefused, BrokerUnreachable.
        """
        return await self._ask(fleet.remove(name), timeout_s)

    async def close(self) -> None:
        """Acknowledge what was taken, say goodbye and close the socket."""
        if self._pump.socket.closed:
            return
        with contextlib.suppress(RollmqError):
            self._core.leave(time.monotonic())
            await self._wait(lambda: self._core.may_go, CLOSE_S, "the broker to have heard")
            self._core.say_goodbye()
        self._ticking.cancel()
        self._send_all()
        self._pump.outbox.flush()
        self._pump.close(linger_ms=1000)
        self._front.destroy(linger_ms=1000)

    def _acknowledge_taken(self) -> None:
        self._core.acknowledge(self._taken)
        self._taken = []

    async def _next(self) -> Rollout | None:
        self._acknowledge_taken()
        while not self._core.results:
            if self._core.idle:
                return None
            self._core.settle(time.monotonic())
            await self._changes(TICK_S)
        return self._core.results.popleft()

    async def _ask(self, wish: fleet.Wish[Answer], timeout_s: float) -> Answer:
        message, text = wish.message()
        key = f"ask {message.request_id}"
        question = self._core.ask(key, message, text)
        try:
            found, body = await self._answer(question, timeout_s, wish.what)
        except BrokerUnreachable as silence:
            raise fleet.with_doubt(silence, question.doubt) from None
        finally:
            self._core.give_up_question(key)
        return wish.answer(found, body)

    async def _answer(self, question: Question, timeout_s: float, what: str) -> Any:
        self._send_all()
        await self._wait(lambda: question.answer is not None, timeout_s, what)
        return question.answer

    async def _wait(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise BrokerUnreachable(f"waited {timeout_s:g} s for {what} from {self._endpoint}")
            await self._changes(TICK_S)

    async def _changes(self, wait_s: float) -> None:
        if self._failure is not None:
            raise self._failure
        self._send_all()
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), wait_s)
        except TimeoutError:
            return

    async def _tick(self) -> None:
        while self._failure is None:
            self._turn()
            await asyncio.sleep(TICK_S)

    def _turn(self) -> None:
        try:
            self._front.turn(self._core, time.monotonic())
            self._step_samplings()
        except ClientError as wrong:
            self._failure = wrong
            self._changed.set()
        self._send_all()

    def _receive(self, messages: Iterable[list[Any]]) -> None:
        now = time.monotonic()
        try:
            for frames in messages:
                message, body = self._codec.decode(frames)
                self._front.hear(self._core, message, body, now)
            self._step_samplings()
        except RollmqError as wrong:
            self._failure = wrong
        self._send_all()
        self._changed.set()

    def _step_samplings(self) -> None:
        for sampling in list(self._core.samplings.values()):
            sampling.step(PROMPT_S)

    def _send_all(self) -> None:
        outgoing = self._core.outgoing
        while outgoing:
            message, body = outgoing.popleft()
            self._pump.send(encode(message, body))
