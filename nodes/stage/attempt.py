"""One attempt: the work's frames into a context, the handler's output into a result.

Whatever escapes a handler becomes a failed attempt with its boundary; the worker never crashes of
it. This module knows no socket.
"""

import asyncio
import contextlib
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from engine.arrays import array_buffer, read_body
from engine.errors import BoundaryError, LocalProtocolError, ProtocolError
from engine.messages import RESULTS, StageResult, Work
from engine.messages.worker import AttemptStatus
from engine.records import ITEM_BYTES, Buffer, Failure, Task, Usage
from engine.trajectories import TRAJECTORY, Trajectory
from engine.wire import Codec, encode, forward, json_buffer, pack

from ..sandboxes.contract import Owner, Sandbox, Spec
from ..sandboxes.link import AttemptSandboxes, Link
from ..tasks import Generation, Model, Output, Sampling
from ..tracing.attempts import CURRENT, AttemptSpans, span
from .handlers import Handler, is_async
from .table import SlotTable, Watched

SPANS = "policy_spans"  # left out where no span is known
Ended = tuple[StageResult, Sequence[Any]]
CODEC: Codec[StageResult] = Codec(RESULTS)


class Inference(Model, Protocol):
    """A model that also says what was spent on requests that were aborted."""

    async def settle(self, session: str) -> int:
        """Return the tokens that the session's aborted requests had sampled; soon, and once."""
        ...


class Sessions:
    """A model that remembers which sessions an attempt opened, to release them on every path.

    `policy_version` is that of the first token sampled.
    """

    def __init__(self, model: Inference | None) -> None:
        self._model = model
        self._open: set[str] = set()
        self._released: set[str] = set()
        self.policy_version: int | None = None

    async def generate(
        self, session: str, token_ids: npt.NDArray[np.int32], sampling: Sampling
    ) -> Generation:
        """Sample a completion; see `Model.generate`. Raises: BoundaryError("backend")."""
        if self._model is None:
            raise BoundaryError("backend", "the topology has no router", retry=False)
        self._open.add(session)
        with span("turn") as notes:
            notes["rollmq.prompt_tokens"] = len(token_ids)
            generation = await self._model.generate(session, token_ids, sampling)
            notes["rollmq.tokens"] = len(generation.token_ids)
            notes["rollmq.finish_reason"] = generation.finish_reason
        if self.policy_version is None and len(generation.policy_spans):
            self.policy_version = int(generation.policy_spans[0, 2])
        return generation

    async def release(self, session: str) -> None:
        """End a session. What its aborted requests had sampled is counted after the handler."""
        self._open.discard(session)
        self._released.add(session)
        if self._model is not None:
            await self._model.release(session)

    async def release_all(self) -> int:
        """End every session; return the tokens that were sampled for requests that were aborted.

        No handler waits for that count: it may come late, and a sandbox is stopped meanwhile.
        """
        for session in list(self._open):
            await self.release(session)
        if self._model is None:
            return 0
        return sum([await self._model.settle(session) for session in self._released])


@dataclass(slots=True, eq=False)
class AttemptContext:
    """What the handler of one attempt is given; satisfies `nodes.tasks.Context`."""

    task: Task
    rollout_id: str
    group_id: str
    stage: str
    attempt: int
    data: dict[str, Any]
    trajectory: Trajectory | None
    arrays: dict[str, npt.NDArray[Any]]
    model: Model
    sandboxes: AttemptSandboxes
    turns: int = 0
    tokens: int = 0
    started_at: float = field(default_factory=time.monotonic)

    def spent(self, *, turns: int = 0, tokens: int = 0) -> None:
        """Count what this attempt has used."""
        self.turns += turns
        self.tokens += tokens

    async def sandbox(self, spec: Spec | None = None) -> Sandbox:
        """Start a sandbox, or return the pinned one. Raises: BoundaryError("sandbox")."""
        with span("sandbox"):
            return await self.sandboxes.open(spec)

    @property
    def usage(self) -> Usage:
        """What was spent so far."""
        return Usage(self.turns, self.tokens, time.monotonic() - self.started_at)


def make_context(
    work: Work, body: list[Any], model: Sessions, sandboxes: AttemptSandboxes
) -> AttemptContext:
    """Read the task and what earlier stages left; arrays are views on the frames.

    Raises: RemoteProtocolError if a frame does not parse; ValueError if token arrays do not fit.
    """
    data, arrays = read_body(work.buffers, body)
    parts = {name: arrays.pop(name) for name in TRAJECTORY if name in arrays}
    return AttemptContext(
        task=Task(work.task_id, work.task_kind, data.pop("task")),
        rollout_id=work.rollout_id,
        group_id=work.group_id,
        stage=work.stage,
        attempt=work.attempt,
        data=data,
        trajectory=Trajectory(**parts) if parts else None,
        arrays=arrays,
        model=model,
        sandboxes=sandboxes,
    )


class Attempt:
    """Runs one handler in one slot and always ends in a result."""

    def __init__(
        self,
        work: Work,
        worker_id: str,
        node: str,
        table: SlotTable,
        slot: int,
        model: Inference | None,
        unpinnable: tuple[str, ...] = (),
        link: Link | None = None,
        spans: AttemptSpans | None = None,
    ) -> None:
        owner = Owner(work.rollout_id, work.attempt, worker_id)
        self.sandboxes = AttemptSandboxes(link, owner)
        self._unpinnable = unpinnable
        self._spans = spans
        self._work = work
        self._worker_id = worker_id
        self._node = node
        self._table = table
        self._slot = slot
        self._sessions = Sessions(model)
        self._usage: Callable[[], Usage] = Usage
        self._task: asyncio.Task[Any] | None = None
        self._is_late = False
        self.has_begun = False

    async def run(self, body: list[Any], find: Callable[[str], Handler]) -> Ended:
        """Call the handler; return the result and its frames, whatever happened."""
        self.has_begun = True
        if self._spans is not None:
            CURRENT.set(self._spans)  # for this task and the threads that it starts
        self._task = asyncio.current_task()
        deadline = asyncio.get_running_loop().call_later(self._work.timeout_s, self._expire)
        try:
            ended = await self._end(body, find)
            if ended[0].status == "failed" and not self._is_late:
                ended = await self._as_lost(ended)
        finally:
            deadline.cancel()
            self.sandboxes.give_back()
        return _with_aborted(ended, await self._sessions.release_all())

    async def _end(self, body: list[Any], find: Callable[[str], Handler]) -> Ended:
        try:
            context = make_context(self._work, body, self._sessions, self.sandboxes)
            self._usage = lambda: context.usage
            output = await self._call(find(self._work.task_kind), context)
            return await self._finished(output)
        except asyncio.CancelledError:
            if not self._is_late:
                return self.cancelled()
            return self._failed(
                "handler", "Timeout", f"no result within {self._work.timeout_s:g} s"
            )
        except BoundaryError as wrong:
            name = type(wrong.__cause__ or wrong).__name__
            return self._failed(wrong.boundary, name, str(wrong), retry=wrong.retry)
        except Exception as wrong:  # noqa: BLE001 - the boundary to a task kind's code
            return self._failed("handler", type(wrong).__name__, _describe(wrong))

    async def _as_lost(self, ended: Ended) -> Ended:
        """Return a failed result, as a lost one if what the rollout had pinned is gone."""
        try:
            is_lost = await self.sandboxes.is_lost()
        except asyncio.CancelledError:  # out of time, or not wanted: a failure is true either way
            return ended
        return (replace(ended[0], status="lost"), ended[1]) if is_lost else ended

    async def _finished(self, output: Output) -> Ended:
        """Return a handler's result, once what it pins is left to later stages."""
        done = self._done(output)
        if output.pinned and not output.final:
            await self.sandboxes.pin()
        return done

    def _expire(self) -> None:
        self._is_late = True
        assert self._task is not None
        self._task.cancel()

    def cancelled(self) -> Ended:
        """Return the result of an attempt that was stopped."""
        return self._result("cancelled"), []

    def frames(self, ended: Ended, message_bytes: int) -> list[Any]:
        """Return the frames of a result that the broker will take: of a failure, if need be.

        What a handler wrote may be of a wrong type or too long, so the result is read as the broker
        will.
        """
        try:
            frames = forward(*ended)
            if CODEC.decode(frames)[0] != ended[0]:
                raise LocalProtocolError("a name in it is not a string")
            largest = max(map(len, frames))
            if largest > message_bytes:
                limit = f"a frame of {largest} bytes is over limits.message_bytes {message_bytes}"
                raise LocalProtocolError(limit)
        except (ProtocolError, TypeError, ValueError) as wrong:
            self._usage = Usage
            why = f"its output cannot be sent: {wrong}"
            return encode(*self._failed("handler", type(wrong).__name__, why, retry=False))
        return frames

    async def _call(self, handler: Handler, context: AttemptContext) -> Output:
        if is_async(handler):
            output = await Watched(handler(context), self._table, self._slot)  # type: ignore[arg-type]
        else:
            output = await self._in_own_thread(handler, context)
        if not isinstance(output, Output):
            why = f"the handler returned {type(output).__name__}, not nodes.tasks.Output"
            raise BoundaryError("handler", why, retry=False)
        return output

    async def _in_own_thread(self, handler: Handler, context: AttemptContext) -> Any:
        """Nothing stops a thread: until it ends by itself the slot is not free."""
        thread = asyncio.ensure_future(asyncio.to_thread(self._in_thread, handler, context))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            while not thread.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([thread])
            raise

    def _in_thread(self, handler: Handler, context: AttemptContext) -> Any:
        self._table.in_thread(self._slot, running=True)
        try:
            return handler(context)
        finally:
            self._table.in_thread(self._slot, running=False)

    def _done(self, output: Output) -> Ended:
        if output.pinned and self._unpinnable and not output.final:
            where = f"no worker of {', '.join(self._unpinnable)} is on the host of {self._node}"
            raise BoundaryError("handler", f"pinned, but {where}", retry=False)
        described: list[tuple[Buffer, Any]] = []
        if output.data is not None:
            described.append(json_buffer(self._work.stage, output.data))
        if output.trajectory is not None:
            token_arrays = ((name, getattr(output.trajectory, name)) for name in TRAJECTORY)
            described.extend(
                array_buffer(name, array)
                for name, array in token_arrays
                if array.size or name != SPANS
            )
        for name, array in output.arrays.items():
            if name in TRAJECTORY:
                raise LocalProtocolError("is a trajectory's own array", name)
            described.append(array_buffer(name, array))
        described.sort(key=_alignment)
        result = self._result(
            "done",
            outcome=output.outcome,
            final=output.final,
            pinned=output.pinned,
            reward=None if output.reward is None else _finite("reward", output.reward),
            rewards=output.rewards and {k: _finite(k, v) for k, v in output.rewards.items()},
            trainable=output.trainable,
            buffers=tuple([buffer for buffer, _ in described]),
        )
        return result, pack([frame for _, frame in described])

    def _failed(self, boundary: str, error: str, message: str, *, retry: bool = True) -> Ended:
        work = self._work
        message = message[:4000].encode("utf-8", "replace").decode()
        failure = Failure(
            work.stage,
            work.attempt,
            boundary[:64] or "handler",
            error[:64],
            message,
            self._node,
        )
        return self._result("failed", failure=failure, retry=retry), []

    def _result(self, status: AttemptStatus, **known: Any) -> StageResult:
        work, usage = self._work, self._usage()
        return StageResult(
            self._worker_id,
            work.rollout_id,
            work.stage,
            work.attempt,
            status,
            usage.seconds,
            usage=usage,
            policy_version=self._sessions.policy_version,
            **known,
        )


def _with_aborted(ended: Ended, tokens: int) -> Ended:
    """Add to a result's usage what was sampled for requests that were aborted."""
    result, frames = ended
    if not tokens or result.usage is None:
        return ended
    usage = replace(result.usage, tokens=result.usage.tokens + tokens)
    return replace(result, usage=usage), frames


def _alignment(described: tuple[Buffer, Any]) -> int:
    """Order buffers so that each begins at a multiple of its items' size, packed or not."""
    return -ITEM_BYTES[described[0].dtype]


def _finite(name: str, value: float) -> float:
    number = float(value)
    if not np.isfinite(number):
        raise BoundaryError("evaluator", f"{name} is {number}", retry=False)
    return number


def _describe(wrong: BaseException) -> str:
    place = traceback.extract_tb(wrong.__traceback__)[-1:]
    where = "".join(f" at {frame.filename}:{frame.lineno}" for frame in place)
    return f"{type(wrong).__name__}: {wrong}{where}"
