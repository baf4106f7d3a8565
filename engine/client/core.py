"""The trainer's side of the protocol as a pure core, shared by Client and AsyncClient.

Messages in with the time, messages out through `outgoing`. It repeats what was not answered, says
hello again to a broker that restarted, drops results that come twice, and counts what is still
owed. No socket, no clock, no thread: the two clients are thin pumps around it.
"""

import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..errors import (
    AccessRefused,
    BrokerUnreachable,
    Full,
    Refused,
    RemoteProtocolError,
    Replaced,
    StateLost,
)
from ..messages import (
    Accepted,
    Ack,
    AskNode,
    Batch,
    Cancel,
    Cancelled,
    Credit,
    EndSample,
    Goodbye,
    Hello,
    Judged,
    Message,
    NodeAnswer,
    Ping,
    Pong,
    Problem,
    Refusal,
    Result,
    Status,
    StatusRequest,
    Submit,
    Wanted,
    Welcome,
)
from ..messages import Replaced as ReplacedMessage
from ..trajectories import Rollout
from ..wire import read_json
from .listener import Listener
from .results import rollout_from
from .sequence import Sequence, ranges

ACK_BATCH = 32  # results acknowledged in one message; fewer when the caller waits
FLUSH_S = 0.01  # between two acknowledgements that are not full batches
SETTLE_S = 0.02  # of quiet before the question whether anything is still owed
LISTEN_S = 1.0  # a longer gap between two ticks is the caller's own pause, not the broker's silence
RETRY_S = 1.0  # an unanswered hello, or a submit refused for want of room, is repeated after this
PASSING = frozenset({"full", "disk_full"})


@dataclass(slots=True)
class Submission:
    """A submit that has not been accepted yet."""

    message: Submit
    body: tuple[bytes, ...]
    wait: bool
    sent_at: float | None = None
    accepted: bool = False
    error: Exception | None = None


@dataclass(slots=True)
class Question:
    """A question and its answer; `doubt` is why a question to a node has none yet."""

    message: Cancel | StatusRequest | AskNode
    body: tuple[bytes, ...] = ()
    answer: Any = None
    sent_at: float | None = None
    doubt: str = ""


@dataclass(slots=True)
class Core:
    """Everything that a client knows. Times are seconds of any clock that never goes back."""

    client_id: str
    window: int
    patience_s: float
    outgoing: deque[tuple[Message, tuple[bytes, ...]]] = field(default_factory=deque)
    results: deque[Rollout] = field(default_factory=deque)
    welcome: Welcome | None = None
    owed: int = 0  # results still to come, by the broker's last word
    message_bytes: int = sys.maxsize  # the largest that we and the broker may send
    idle: bool = False  # the broker has confirmed that it owes nothing
    samplings: dict[str, Listener] = field(default_factory=dict)
    _unclaimed: dict[str, list[Rollout]] = field(default_factory=dict)  # by sampling, not open here
    _left: dict[str, int] = field(default_factory=dict)  # samplings not open, with batches taken
    _ended: dict[str, None] = field(default_factory=dict)  # samplings that were closed here
    _submissions: dict[str, Submission] = field(default_factory=dict)
    _questions: dict[str, Question] = field(default_factory=dict)
    _received: Sequence = field(default_factory=Sequence)
    _acked: Sequence = field(default_factory=Sequence)
    _expected: dict[str, str] = field(default_factory=dict)  # accepted, with their sampling
    _to_ack: list[int] = field(default_factory=list)
    _to_hold: list[int] = field(default_factory=list)
    _ticked_at: float = 0.0
    _silent_s: float = 0.0
    _hello_at: float | None = None
    _ping_at: float = 0.0
    _ping: tuple[int, int, int] | None = None  # nonce, unacknowledged here, activity
    _nonce: int = 0
    _activity: int = 0
    _active_at: float = 0.0
    _flushed_at: float = 0.0
    _met: bool = False  # welcomed at least once
    _leaving: bool = False

    def start(self, now: float) -> None:
        """Say hello."""
        self._ticked_at = now
        self._hello(now)

    def submit(self, message: Submit, body: tuple[bytes, ...], *, wait: bool) -> Submission:
        """Queue a submit; it is sent at the next tick if the broker has welcomed us.

        Raises: Refused if no message may be as large.
        """
        size_bytes = sum(map(len, body))
        if size_bytes > self.message_bytes:
            why = f"a payload of {size_bytes} bytes is over limits.message_bytes"
            raise Refused("invalid", f"{why} {self.message_bytes}")
        submission = Submission(message, body, wait)
        self._submissions[message.submit_id] = submission
        self.idle = False
        self._activity += 1
        return submission

    def give_up(self, submission: Submission) -> None:
        """Repeat a submit no more; one that is under way may be accepted all the same."""
        self._submissions.pop(submission.message.submit_id, None)

    def ask(
        self, key: str, message: Cancel | StatusRequest | AskNode, body: tuple[bytes, ...] = ()
    ) -> Question:
        """Queue a question, repeated to a restarted broker until it is answered.

        One to a node is repeated anyway: the node may have restarted too.
        """
        question = self._questions[key] = Question(message, body)
        if self.welcome is not None:
            self._send(message, body)
        return question

    def forget(self, seqs: Iterable[int]) -> None:
        """Count results as acknowledged: the broker is told in another way."""
        for seq in seqs:
            if seq in self._received:
                self._acked.add(seq)

    def give_up_question(self, key: str) -> None:
        """Ask no more."""
        self._questions.pop(key, None)

    def acknowledge(self, seqs: list[int]) -> None:
        """Acknowledge results; sent in batches. Those of a broker that lost them are left out."""
        known = [seq for seq in seqs if seq in self._received]
        for seq in known:
            self._acked.add(seq)
        self._to_ack += known
        if len(self._to_ack) >= ACK_BATCH:
            self.flush()

    def hold(self, seq: int) -> None:
        """Keep a result for later: it stays owed, and makes room for others."""
        self._to_hold.append(seq)

    def flush(self) -> None:
        """Send the acknowledgements that wait, and what is held."""
        if self.welcome is None or not (self._to_ack or self._to_hold):
            return
        self._send(Ack(ranges(self._to_ack), self.window, ranges(self._to_hold)))
        self._to_ack, self._to_hold = [], []

    def leave(self, now: float) -> None:
        """End every sampling's part, flush, and have the broker say that it has heard all of it."""
        for sampling in list(self.samplings.values()):
            sampling.finish()
        self._leaving = True
        if self.welcome is not None:
            self._send_ping(now)

    @property
    def may_go(self) -> bool:
        """Whether the broker, if it was ever met, has heard everything that was said."""
        heard = self.welcome is not None and self._ping is None and not self.outgoing
        return heard or not self._met

    def say_goodbye(self) -> None:
        """Say goodbye, which may be lost."""
        self.say(Goodbye())

    def tick(self, now: float) -> None:
        """Repeat what was not answered; notice silence.

        Raises: BrokerUnreachable if nothing was heard for `patience_s`.
        """
        self._silent_s += min(now - self._ticked_at, LISTEN_S)
        self._ticked_at = now
        if self._silent_s > self.patience_s:
            raise BrokerUnreachable(f"the broker was not heard for {self._silent_s:.1f} s")
        if self.welcome is None:
            if self._hello_at is None or now - self._hello_at >= RETRY_S:
                self._hello(now)
            return
        if now - self._ping_at >= min(self.welcome.heartbeat_s, self.patience_s / 4):
            self._send_ping(now)
        if now - self._flushed_at >= FLUSH_S:
            self._flushed_at = now
            self.flush()
        for submission in self._submissions.values():
            self._send_submission(submission, now)
        for question in self._questions.values():
            self._ask_again(question, now)

    def _ask_again(self, question: Question, now: float) -> None:
        if not isinstance(question.message, AskNode):
            return
        if question.sent_at is None:
            question.sent_at = now
        elif now - question.sent_at >= RETRY_S:
            question.sent_at = now
            self._send(question.message, question.body)

    def settle(self, now: float) -> None:
        """Find out whether anything is still owed; `idle` says so once the broker has confirmed it.

        Raises: StateLost if the broker owes nothing, but has not sent all that it accepted.
        """
        if self.welcome is None or self._submissions or self.results or self._ping is not None:
            return
        if now - max(self._ping_at, self._active_at) >= SETTLE_S:
            self._send_ping(now)

    def receive(self, message: Any, body: list[Any], now: float) -> None:
        """Take one message from the broker.

        Raises: RemoteProtocolError if its arrays do not fit together; Replaced if another process
        said hello with our client_id.
        """
        self._silent_s = 0.0
        match message:
            case Result() if self.welcome is not None:  # what a hello finds owed comes again
                self._active_at = now
                self._result(message, body)
            case Accepted(submit_id):
                self._accepted(submit_id, message.repeated)
            case Refusal(submit_id, code, why):
                self._refused(submit_id, code, why, now)
            case Welcome():
                self._welcomed(message, now)
            case Pong(broker_id, nonce, unacked):
                self._ponged(broker_id, nonce, unacked, now)
            case Credit():
                self._resend_refused()
            case Wanted(sampling_id) | Judged(sampling_id) | Batch(sampling_id):
                self._of_sampling(sampling_id, message)
            case Cancelled() | Status() | NodeAnswer():
                self._answer_came(message, body)
            case ReplacedMessage(client_id):
                raise Replaced(f"another process said hello as {client_id!r}")
            case Problem(code, where, why):
                self._problem(code, where, why, now)

    def _hello(self, now: float) -> None:
        self.welcome = None
        self._ping = None
        self._hello_at = now
        self._to_hold = []
        self._send(Hello(self.client_id, self.window))

    def _hello_again(self, now: float) -> None:
        if self.welcome is not None:  # otherwise a hello is on its way already
            self._hello(now)

    def _welcomed(self, message: Welcome, now: float) -> None:
        self.welcome = message
        self._met = True
        self._ping_at = now
        self.owed = message.unacked
        self.message_bytes = min(self.message_bytes, message.message_bytes)
        if not message.unacked and message.acked_through < self._received.last:
            self._start_anew()
        self._received.skip_to(message.acked_through)
        self._acked.skip_to(message.acked_through)
        for question in self._questions.values():
            self._send(question.message, question.body)
        for sampling_id in self._ended:
            self._send(EndSample(sampling_id))
        for sampling in self.samplings.values():
            sampling.welcome()
        for submission in self._submissions.values():
            submission.sent_at = None
            self._send_submission(submission, now)
        if self._leaving:
            self._send_ping(now)

    def _start_anew(self) -> None:
        """Forget the numbers of a broker that has lost its state: the next one begins at 1."""
        self._received, self._acked = Sequence(), Sequence()
        self._to_ack = []

    def _send_ping(self, now: float) -> None:
        self.flush()  # the pong then counts what is not acknowledged exactly as it is counted here
        self._ping_at = now
        self._nonce += 1
        unacked = len(self._received) - len(self._acked)
        self._ping = (self._nonce, unacked, self._activity)
        self._send(Ping(self._nonce))

    def _ponged(self, broker_id: str, nonce: int, unacked: int, now: float) -> None:
        if self.welcome is not None and broker_id != self.welcome.broker_id:
            self._hello(now)
            return
        if self._ping is None or self._ping[0] != nonce:
            return
        _, here, activity = self._ping
        self._ping = None
        if activity != self._activity:
            return
        self.owed = unacked - here
        self.idle = self.owed <= 0 and not self._submissions
        if self.idle and self._expected:
            gone = len(self._expected)
            self._expected.clear()
            raise StateLost(f"the broker has forgotten {gone} rollouts that it had accepted")

    def _send_submission(self, submission: Submission, now: float) -> None:
        if self.welcome is not None and submission.sent_at is None:
            submission.sent_at = now
            self._send(submission.message, submission.body)
        elif submission.sent_at is not None and now - submission.sent_at > 10 * RETRY_S:
            submission.sent_at = None

    def _accepted(self, submit_id: str, repeated: tuple[str, ...]) -> None:
        submission = self._submissions.pop(submit_id, None)
        if submission is not None:
            submission.accepted = True
            fresh = set(submission.message.rollout_ids).difference(repeated)
            name = submission.message.sampling_id
            if name not in self._ended:
                self._expected.update(dict.fromkeys(fresh, name))
            self.owed += len(fresh)
            self._activity += 1

    def _refused(self, submit_id: str, code: str, why: str, now: float) -> None:
        submission = self._submissions.get(submit_id)
        if submission is None:
            if submit_id in self.samplings and code != "hello_first":
                self.samplings[submit_id].refuse(why)
            return
        if code == "hello_first":
            self._hello_again(now)
        elif code in PASSING and submission.wait:
            submission.sent_at = now - 9 * RETRY_S
        else:
            del self._submissions[submit_id]
            submission.error = Full(why) if code in PASSING else Refused(code, why)

    def _resend_refused(self) -> None:
        for submission in self._submissions.values():
            submission.sent_at = None

    def _answered(self, key: str, answer: Any) -> None:
        question = self._questions.pop(key, None)
        if question is not None:
            question.answer = answer

    def _answer_came(self, message: Cancelled | Status | NodeAnswer, body: list[Any]) -> None:
        match message:
            case Cancelled(cancel_id):
                self._answered(f"cancel {cancel_id}", message)
            case Status(request_id, buffers):
                self._answered(f"status {request_id}", read_json(buffers[0], body[0]))
            case NodeAnswer():
                self._node_answered(message, body)

    def _node_answered(self, message: NodeAnswer, body: list[Any]) -> None:
        key = f"ask {message.request_id}"
        question = self._questions.get(key)
        if question is not None and message.code == "no_node":
            question.doubt = message.message
        else:
            self._answered(key, (message, body))

    def _problem(self, code: str, where: str, why: str, now: float) -> None:
        if code == "hello_first":
            self._hello_again(now)
        elif code == "access":
            raise AccessRefused(f"the broker refuses this: {why}")
        else:
            raise RemoteProtocolError(f"the broker refused our message: {why}", where)

    def _result(self, message: Result, body: list[Any]) -> None:
        if message.seq in self._received:
            self._again(message)
            return
        self._received.add(message.seq)
        self._expected.pop(message.rollout_id, None)
        self._activity += 1
        self.owed -= 1
        sampling = self.samplings.get(message.sampling_id)
        if sampling is not None:
            sampling.add(rollout_from(message, body))
        elif not message.sampling_id:
            self.results.append(rollout_from(message, body))
        elif message.sampling_id in self._ended:
            self.acknowledge([message.seq])
        else:
            unclaimed = self._unclaimed.setdefault(message.sampling_id, [])
            unclaimed.append(rollout_from(message, body))
            self.hold(message.seq)

    def _of_sampling(self, sampling_id: str, message: Wanted | Judged | Batch) -> None:
        if sampling_id in self.samplings:
            self.samplings[sampling_id].hear(message)

    def _again(self, message: Result) -> None:
        if message.seq in self._acked:
            self._to_ack.append(message.seq)
        else:
            self.hold(message.seq)

    def open_sampling(self, sampling_id: str, sampling: Listener) -> tuple[list[Rollout], int]:
        """Hand a sampling what comes for it from now on.

        Return what has come already, and how many of its batches were taken here before: the broker
        may not have heard of the last.
        """
        self.samplings[sampling_id] = sampling
        self._ended.pop(sampling_id, None)
        return self._unclaimed.pop(sampling_id, []), self._left.pop(sampling_id, 0)

    def leave_sampling(self, sampling_id: str, rollouts: list[Rollout], taken: int) -> None:
        """Keep what has come for a sampling, and what will, for whoever opens it again."""
        del self.samplings[sampling_id]
        self._unclaimed[sampling_id] = rollouts
        self._left[sampling_id] = taken

    def end_sampling(self, sampling_id: str) -> None:
        """Close a sampling, which is not open here; told again to a broker that restarts."""
        self.forget(rollout.seq for rollout in self._unclaimed.pop(sampling_id, []))
        self._ended[sampling_id] = None
        self._left.pop(sampling_id, None)
        ours = [name for name, sampling in self._expected.items() if sampling == sampling_id]
        for rollout_id in ours:
            del self._expected[rollout_id]
        self.say(EndSample(sampling_id))

    def say(self, message: Message) -> None:
        """Send a message, unless the broker has not welcomed us: it is then not told."""
        if self.welcome is not None:
            self._send(message)

    def _send(self, message: Message, body: tuple[bytes, ...] = ()) -> None:
        self.outgoing.append((message, body))
