"""The trainer's client, synchronous: it moves messages only inside its own calls.

    with Client("topology.yaml", client_id="trainer-0") as client:
        client.submit(Task("t-1", "reasoning", {...}), group_size=8)
        for rollout in client.rollouts():
            learn(rollout.trajectory, rollout.reward)

A rollout is acknowledged when the next one is asked for, so a trainer that dies while it works on
one receives it again, under the same `client_id`. Not thread-safe.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq

from ..errors import BrokerUnreachable, Full, NodeRefused, RollmqError
from ..messages import TO_TRAINER, Ack, AskNode, Cancel, Cancelled, StatusRequest
from ..records import BackendState, Published, Task
from ..sampling import Over, Staleness
from ..sockets import drain, send
from ..trajectories import Rollout
from ..wire import Codec, encode
from . import fleet
from .background import Background
from .core import Core, Question, Submission
from .feed import IN_FLIGHT, Feed, answered
from .front import Front
from .groups import Groups
from .requests import cancel_message, status_message, submit_message
from .sampling import Batch, Sampling, spec_of
from .times import CLOSE_S, SLACK_S

Answer = TypeVar("Answer")

POLL_S = 0.02  # the longest wait between two looks at the clock
PROMPT_S = 0.002  # the longest wait for a prompt that was just asked for


class Client:
    """A trainer's connection to the broker.

    where: a topology file, or the endpoint of the broker's front socket.
    client_id: names this trainer across its own restarts; results not acknowledged come again.
    window: results that may be delivered and not yet acknowledged.
    patience_s: how long the broker may be silent (restarting, say) before BrokerUnreachable.
    sync: called before acknowledgements leave, which is when the broker may forget results: makes
        durable what became of those already taken. What it raises, every call here may raise, and
        nothing is acknowledged.
    key: the name of our key in the topology's `keys`; docs/security.md says which it is otherwise.

    Raises: BrokerUnreachable if the broker does not answer within `connect_s`; KeysError;
    AccessRefused, as every call here may, if the broker does not take our key.
    """

    def __init__(
        self,
        where: str | Path,
        client_id: str | None = None,
        *,
        window: int = 256,
        connect_s: float = 10.0,
        patience_s: float = 60.0,
        sync: Callable[[], None] | None = None,
        key: str | None = None,
    ) -> None:
        self._front = Front(where, key)
        self._endpoint, self._bounds = self._front.endpoint, self._front.bounds
        self.client_id = self._front.client_id(client_id)
        self._socket = self._front.connect(self.client_id)
        self._codec: Codec[Any] = Codec(TO_TRAINER)
        self._core = Core(self.client_id, window, patience_s)
        self._core.message_bytes = self._bounds.message_bytes
        self._groups = Groups()
        self._sync = sync
        self._taken: list[int] = []  # of what the caller works on: acknowledged when it comes back
        self._lock = RLock()  # a thread of ours has it while the caller works on a batch
        self._core.start(time.monotonic())
        try:
            self._wait(lambda: self._core.welcome is not None, connect_s, "the broker's welcome")
        except BaseException:
            self._front.destroy(linger_ms=0)
            raise

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the client."""
        self.close()

    @property
    def owed(self) -> int:
        """How many results are still to come, by the broker's last word."""
        return max(0, self._core.owed)

    def submit(
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

        With `wait`, a broker without room is waited for: results must be taken meanwhile for room
        to appear, so rather use `run` for more than the broker's bound.

        Raises: Full if there is no room (with `wait`, for `timeout_s`); Refused if the broker will
        not take it; BrokerUnreachable; ValueError.
        """
        submission = self._submit(task, group_size, group_id, rollout_ids, priority, wait=wait)
        self._wait_for_room(submission, timeout_s)
        return submission.message.rollout_ids

    def submit_all(self, tasks: Iterable[Task], group_size: int = 1) -> list[tuple[str, ...]]:
        """Submit many groups with several submits in flight; return their rollout ids.

        Raises: as `submit`.
        """
        flying: list[Submission] = []
        names = []
        for task in tasks:
            flying.append(self._submit(task, group_size, None, None, 0, wait=True))
            names.append(flying[-1].message.rollout_ids)
            if len(flying) >= IN_FLIGHT:
                self._wait_for_room(flying.pop(0), 300.0)
        for submission in flying:
            self._wait_for_room(submission, 300.0)
        return names

    def rollouts(self) -> Iterator[Rollout]:
        """Iterate rollouts as they end, until the broker owes none.

        Raises: BrokerUnreachable, Replaced, StateLost.
        """
        while (rollout := self._next()) is not None:
            self._taken = [rollout.seq]
            yield rollout
        self._pump(0.0)

    def groups(self) -> Iterator[list[Rollout]]:
        """Iterate whole groups as their last member ends, until the broker owes nothing.

        A group of which the broker will send no more (its other members were acknowledged before
        this client started) comes at the end, as far as it was received.
        """
        while (rollout := self._next()) is not None:
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
        self._pump(0.0)

    def run(
        self,
        tasks: Iterable[Task],
        group_size: int = 1,
        *,
        in_flight: int | None = None,
        group_id: Callable[[Task], str] | None = None,
        idle: Callable[[], None] | None = None,
    ) -> Iterator[Rollout]:
        """Submit tasks as the broker has room, and iterate rollouts as they end.

        in_flight: rollouts submitted and not yet received at the most; no bound of ours if None.
        group_id: names a task's group, so that a repeated run submits the same rollouts.
        idle: called while nothing has arrived, a few times a second.

        Raises: as `submit` and `rollouts`.
        """
        feed = Feed(self._core, tasks, group_size, in_flight, group_id)
        while True:
            if feed.submit():
                self._pump(0.0)
            if self._core.results:
                rollout = self._core.results.popleft()
                self._taken = [rollout.seq]
                yield rollout
                self._acknowledge_taken()
            elif feed.is_over:
                return
            else:
                self._step()
                if idle is not None:
                    idle()

    def sample(
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
    ) -> Iterator[Batch]:
        """Iterate batches of `groups` groups that a filter kept; see docs/sampling.md.

        tasks: prompts, taken one by one as slots of workers become free.
        keep: the filter, or (filter, arguments).
        over: whether what is open when a batch is complete is cancelled, or goes into the next one.
        ahead: batches that may fill while the caller works on one.
        members: rollouts of a group that must not have failed; 0 for all of them.
        staleness, staleness_bound: what is done about rollouts more policy versions behind.
        stop_early: stop groups that the filter can no longer keep.
        margin: groups open for each one expected to be needed; 0 for as many as there are slots.
        in_flight: rollouts under way at the most; 0 for as many as there are slots.
        sampling_id: a name makes it last: whoever calls this again under the same client_id, with
            the same tasks in the same order, goes on with it. Left by `break`, it waits for that.
        source_patience_s: how long `tasks` may give nothing while a prompt is wanted.

        While the caller works on a batch, messages are moved on a thread of the client's own.

        Raises: SourceFailed after the last batch, if `tasks` raised or stood still, or if the
        filter did; Refused; StateLost; BrokerUnreachable; ValueError.
        """
        spec = spec_of(
            *(groups, group_size, keep, over, ahead, members, staleness, staleness_bound),
            stop_early=stop_early,
            margin=margin,
            in_flight=in_flight,
        )
        sampling = Sampling(self._core, tasks, spec, sampling_id, source_patience_s)
        try:
            while (batch := self._batch(sampling)) is not None:
                with Background(self._pump_meanwhile):
                    yield batch
                with self._lock:
                    sampling.take()
        finally:
            with self._lock:
                sampling.finish()
            self._pump_meanwhile()

    def close_sampling(self, sampling_id: str) -> None:
        """Cancel what is open of a sampling that was left, and let the broker forget it."""
        with self._lock:
            self._core.end_sampling(sampling_id)
            self._pump(0.0)

    def cancel(
        self,
        rollout_ids: Sequence[str] = (),
        *,
        group_ids: Sequence[str] = (),
        everything: bool = False,
        client_id: str = "",
        timeout_s: float = 60.0,
    ) -> Cancelled:
        """Cancel, and return the receipts once everything named is over.

        client_id: whose rollouts, if not this client's own.

        Raises: ValueError if nothing is named; BrokerUnreachable.
        """
        message = cancel_message(rollout_ids, group_ids, everything=everything, client_id=client_id)
        question = self._question(f"cancel {message.cancel_id}", message)
        answer = self._answer(question, timeout_s, "the receipts of a cancel")
        assert isinstance(answer, Cancelled)
        return answer

    def status(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """Return the broker's state.

        Raises: BrokerUnreachable.
        """
        message = status_message()
        question = self._question(f"status {message.request_id}", message)
        report: dict[str, Any] = self._answer(question, timeout_s, "the broker's status")
        return report

    def publish(
        self,
        version: int,
        source: str = "",
        *,
        put: Callable[[], None] | None = None,
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
            return self.ask(fleet.publish(version, source, mode, timeout_s), limit_s)
        update_id = self.ask(fleet.pause(version, mode, timeout_s), limit_s)
        try:
            put()
        except BaseException as wrong:
            why = f"{type(wrong).__name__}: {wrong}"
            with contextlib.suppress(NodeRefused):
                self.ask(fleet.put(version, update_id, why), limit_s)
            raise
        return self.ask(fleet.put(version, update_id), limit_s)

    def backends(self, timeout_s: float = 10.0) -> tuple[BackendState, ...]:
        """Return how every inference backend is. Raises: NodeRefused, BrokerUnreachable."""
        return self.ask(fleet.backends(), timeout_s)

    def add_backend(
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
        return self.ask(wish, timeout_s)

    def drain_backend(
        self, name: str, *, undo: bool = False, timeout_s: float = 10.0
    ) -> tuple[BackendState, ...]:
        """Place no new session on a backend, or place them again; what is open goes on.

        Raises: NodeRefused, BrokerUnreachable.
        """
        return self.ask(fleet.drain(name, undo=undo), timeout_s)

    def remove_backend(self, name: str, timeout_s: float = 10.0) -> tuple[BackendState, ...]:
        """Use a backend no more; what is open on it goes elsewhere at once.

        Raises: NodeRefused, BrokerUnreachable.
        """
        return self.ask(fleet.remove(name), timeout_s)

    def close(self) -> None:
        """Acknowledge what was taken, wait up to CLOSE_S for the broker to have heard, and go."""
        with self._lock:
            try:
                if not self._socket.closed:
                    self._leave()
            finally:
                self._front.destroy(linger_ms=1000)

    def _leave(self) -> None:
        with contextlib.suppress(RollmqError):
            self._core.leave(time.monotonic())
            self._wait(lambda: self._core.may_go, CLOSE_S, "the broker to have heard")
            self._core.say_goodbye()
            self._send_all()

    def _submit(
        self,
        task: Task,
        group_size: int,
        group_id: str | None,
        rollout_ids: Sequence[str] | None,
        priority: int,
        *,
        wait: bool,
    ) -> Submission:
        message, body = submit_message(task, group_size, group_id, rollout_ids, priority)
        with self._lock:
            submission = self._core.submit(message, body, wait=wait)
            self._pump(0.0)
        return submission

    def _question(
        self, key: str, message: Cancel | StatusRequest | AskNode, body: tuple[bytes, ...] = ()
    ) -> Question:
        with self._lock:
            return self._core.ask(key, message, body)

    def _batch(self, sampling: Sampling) -> Batch | None:
        """Return a sampling's next batch; None after the last."""
        while not sampling.is_over:
            batch = sampling.batch()
            if batch is not None:
                return batch
            self._pump(POLL_S)
        return None

    def _wait_for_room(self, submission: Submission, timeout_s: float) -> None:
        try:
            self._wait(lambda: answered(submission), timeout_s, "room for a submit")
        except BrokerUnreachable as silence:
            self._core.give_up(submission)
            if self._core.welcome is None:
                raise
            raise Full(f"no room for {timeout_s:g} s") from silence

    def _acknowledge_taken(self) -> None:
        self._core.acknowledge(self._taken)
        self._taken = []

    def _next(self) -> Rollout | None:
        self._acknowledge_taken()
        while not self._core.results:
            if self._core.idle:
                return None
            self._step()
        return self._core.results.popleft()

    def _step(self) -> None:
        self._core.settle(time.monotonic())
        self._pump(POLL_S)

    def ask(self, wish: fleet.Wish[Answer], timeout_s: float) -> Answer:
        """Return what a node answers. Raises: NodeRefused, BrokerUnreachable."""
        message, text = wish.message()
        key = f"ask {message.request_id}"
        question = self._question(key, message, text)
        try:
            found, body = self._answer(question, timeout_s, wish.what)
        except BrokerUnreachable as silence:
            raise fleet.with_doubt(silence, question.doubt) from None
        finally:
            with self._lock:
                self._core.give_up_question(key)
        return wish.answer(found, body)

    def _answer(self, question: Question, timeout_s: float, what: str) -> Any:
        self._wait(lambda: question.answer is not None, timeout_s, what)
        return question.answer

    def _wait(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise BrokerUnreachable(f"waited {timeout_s:g} s for {what} from {self._endpoint}")
            self._pump(POLL_S)

    def _pump(self, wait_s: float) -> None:
        with self._lock:
            self._turn(wait_s)

    def _pump_meanwhile(self) -> None:
        """Move messages for a sampling, unless its caller has closed the client."""
        with self._lock:
            if not self._socket.closed:
                self._turn(PROMPT_S)

    def _turn(self, wait_s: float) -> None:
        self._front.turn(self._core, time.monotonic())
        for sampling in list(self._core.samplings.values()):
            sampling.step(PROMPT_S)
        self._send_all()
        if self._socket.poll(int(wait_s * 1000), zmq.POLLIN):
            for frames in drain(self._socket, 256, copy=False):
                message, body = self._codec.decode(frames)
                self._front.hear(self._core, message, body, time.monotonic())
            self._send_all()

    def _send_all(self) -> None:
        outgoing = self._core.outgoing
        while outgoing:
            message, body = outgoing[0]
            if self._sync is not None and isinstance(message, Ack) and message.seqs:
                self._sync()
            if not send(self._socket, encode(message, body), self._bounds.message_bytes):
                return
            outgoing.popleft()
