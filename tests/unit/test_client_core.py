"""The client's core against a broker that each test plays itself; time is an argument."""

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from engine.arrays import array_buffer
from engine.client.core import RETRY_S, Core, Submission
from engine.client.requests import cancel_message, status_message, submit_message
from engine.client.sequence import ranges
from engine.errors import (
    BrokerUnreachable,
    Full,
    Refused,
    RemoteProtocolError,
    Replaced,
    StateLost,
)
from engine.messages import (
    Accepted,
    Ack,
    Cancelled,
    Credit,
    EndSample,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Problem,
    Refusal,
    Result,
    Status,
    Welcome,
)
from engine.messages import Replaced as ReplacedMessage
from engine.records import Task
from engine.trajectories import Rollout
from engine.wire import json_buffer

HEARTBEAT_S = 2.0
PATIENCE_S = 20.0
TASK = Task("t", "kind", {"question": "?"})


class Fake:
    """A core and the broker that it talks to: what it says is taken, what it hears is given."""

    def __init__(self, window: int = 8) -> None:
        self.now = 100.0
        self.core = Core("trainer", window, PATIENCE_S)
        self.core.start(self.now)
        self.broker_id = "b-1"

    def said(self) -> list[Any]:
        messages = [message for message, _ in self.core.outgoing]
        self.core.outgoing.clear()
        return messages

    def passes(self, seconds: float) -> list[Any]:
        """Tick every half second; return what was said."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            self.core.tick(self.now)
        return self.said()

    def hear(self, message: Any, *body: Any) -> None:
        self.core.receive(message, list(body), self.now)

    def welcome(self, *, unacked: int = 0, acked_through: int = 0) -> None:
        self.hear(
            Welcome(self.broker_id, ("run",), HEARTBEAT_S, 1000, 64, 8, unacked, acked_through)
        )

    def result(self, seq: int, name: str | None = None, **changes: Any) -> None:
        self.hear(result(seq, name or f"r-{seq}", **changes))

    def submit(self, *names: str, wait: bool = True) -> Submission:
        message, body = submit_message(TASK, len(names), None, names, 0)
        return self.core.submit(message, body, wait=wait)

    def accept(self, *names: str) -> Submission:
        submission = self.submit(*names)
        self.core.tick(self.now)
        self.said()
        self.hear(Accepted(submission.message.submit_id, ()))
        return submission

    def take(self) -> Rollout:
        return self.core.results.popleft()

    def ask_whether_owed(self) -> Ping:
        """Be quiet until the core asks what is still owed; return the question."""
        self.now += 0.1
        self.core.settle(self.now)
        [ping] = [message for message in self.said() if isinstance(message, Ping)]
        return ping


def result(seq: int, name: str, **changes: Any) -> Result:
    plain = Result(seq, name, "g", 2, "t", "completed", 1.0, {}, True, (), (), 0.5)
    return replace(plain, **changes)


@pytest.fixture
def broker() -> Fake:
    """A broker that has just been connected to; the hello has been read."""
    fake = Fake()
    fake.said()
    return fake


@pytest.fixture
def welcomed(broker: Fake) -> Fake:
    broker.welcome()
    broker.said()
    return broker


def test_a_hello_is_repeated_until_the_broker_welcomes_it() -> None:
    fake = Fake()
    assert fake.said() == [Hello("trainer", 8)]
    assert fake.passes(RETRY_S - 0.5) == []
    assert fake.passes(2 * RETRY_S) == [Hello("trainer", 8)] * 2
    fake.welcome()
    assert not any(isinstance(message, Hello) for message in fake.passes(10.0))


def test_a_submit_waits_for_the_welcome_and_is_sent_once(broker: Fake) -> None:
    submission = broker.submit("r-1")
    assert broker.passes(0.5) == []
    broker.welcome()
    assert broker.said() == [submission.message]
    broker.hear(Accepted(submission.message.submit_id, ()))
    assert submission.accepted
    assert submission.message not in broker.passes(15 * RETRY_S)


def test_a_submit_that_nobody_answers_is_repeated(welcomed: Fake) -> None:
    submission = welcomed.submit("r-1")
    assert welcomed.passes(0.5) == [submission.message]
    assert submission.message not in welcomed.passes(9 * RETRY_S)
    assert welcomed.passes(3 * RETRY_S).count(submission.message) == 1


def test_a_submit_that_was_given_up_is_not_repeated(welcomed: Fake) -> None:
    submission = welcomed.submit("r-1")
    welcomed.passes(0.5)
    welcomed.core.give_up(submission)
    assert submission.message not in welcomed.passes(15 * RETRY_S)


def test_a_submit_is_repeated_to_a_broker_with_another_id(welcomed: Fake) -> None:
    submission = welcomed.submit("r-1")
    assert welcomed.passes(0.5) == [submission.message]
    [ping] = welcomed.passes(HEARTBEAT_S)
    welcomed.hear(Pong("b-2", ping.nonce, 0))
    assert welcomed.said() == [Hello("trainer", 8)]
    welcomed.welcome()
    assert welcomed.said() == [submission.message]


@pytest.mark.parametrize("problem", [True, False])
def test_a_broker_that_wants_a_hello_first_gets_one_hello_and_the_submit_again(
    welcomed: Fake, problem: bool
) -> None:
    submission = welcomed.submit("r-1")
    welcomed.passes(0.5)
    for _ in range(2):
        if problem:
            welcomed.hear(Problem("hello_first", "kind", "say hello first"))
        else:
            welcomed.hear(Refusal(submission.message.submit_id, "hello_first", "say hello"))
    assert welcomed.said() == [Hello("trainer", 8)]
    welcomed.welcome()
    assert welcomed.said() == [submission.message]
    assert submission.error is None


def test_any_other_problem_is_raised(welcomed: Fake) -> None:
    with pytest.raises(RemoteProtocolError, match="seqs: the broker refused our message: no"):
        welcomed.hear(Problem("refused", "seqs", "no"))


@pytest.mark.parametrize("code", ["full", "disk_full"])
def test_a_submit_without_room_is_sent_again_after_a_while(welcomed: Fake, code: Any) -> None:
    submission = welcomed.submit("r-1")
    welcomed.passes(0.5)
    welcomed.hear(Refusal(submission.message.submit_id, code, "no room"))
    assert submission.message not in welcomed.passes(RETRY_S)
    assert submission.message in welcomed.passes(2 * RETRY_S)
    assert submission.error is None


def test_a_submit_without_room_is_sent_again_at_once_on_credit(welcomed: Fake) -> None:
    submission = welcomed.submit("r-1")
    welcomed.passes(0.5)
    welcomed.hear(Refusal(submission.message.submit_id, "full", "no room"))
    welcomed.hear(Credit(1, 1000))
    assert welcomed.passes(0.5) == [submission.message]


def test_a_submit_that_does_not_wait_for_room_ends_as_full(welcomed: Fake) -> None:
    submission = welcomed.submit("r-1", wait=False)
    welcomed.passes(0.5)
    welcomed.hear(Refusal(submission.message.submit_id, "full", "no room"))
    assert isinstance(submission.error, Full)
    welcomed.hear(Credit(1, 1000))
    assert submission.message not in welcomed.passes(15 * RETRY_S)


def test_a_refused_submit_ends_with_the_brokers_reason(welcomed: Fake) -> None:
    submission = welcomed.submit("r-1")
    welcomed.passes(0.5)
    welcomed.hear(Refusal(submission.message.submit_id, "conflict", "r-1 is another's"))
    assert isinstance(submission.error, Refused)
    assert submission.error.code == "conflict"
    welcomed.hear(Refusal(submission.message.submit_id, "conflict", "the same again"))


def test_a_payload_over_the_message_limit_is_refused_before_it_is_sent(welcomed: Fake) -> None:
    message, body = submit_message(Task("t", "k", {"text": "x" * 1000}), 1, None, None, 0)
    with pytest.raises(Refused, match=r"invalid: .* over limits\.message_bytes 1000"):
        welcomed.core.submit(message, body, wait=True)
    assert welcomed.passes(0.5) == []


def test_a_result_that_comes_twice_is_given_once(welcomed: Fake) -> None:
    welcomed.result(1)
    welcomed.result(1)
    assert [each.seq for each in welcomed.core.results] == [1]
    acks = [message for message in welcomed.passes(1.0) if isinstance(message, Ack)]
    assert acks == [Ack((), 8, ((1, 1),))]


def test_a_result_that_comes_again_after_its_acknowledgement_is_acknowledged_again(
    welcomed: Fake,
) -> None:
    welcomed.result(1)
    welcomed.core.acknowledge([welcomed.take().seq])
    assert welcomed.passes(0.5) == [Ack(((1, 1),), 8)]
    welcomed.result(1)
    assert not welcomed.core.results
    assert welcomed.passes(0.5) == [Ack(((1, 1),), 8)]


def test_acknowledgements_gather_into_ranges(welcomed: Fake) -> None:
    for seq in (1, 2, 3, 5, 4, 7):
        welcomed.result(seq)
    welcomed.core.acknowledge([1, 2, 3, 5, 7])
    assert welcomed.said() == []
    assert welcomed.passes(0.5) == [Ack(((1, 3), (5, 5), (7, 7)), 8)]
    assert welcomed.passes(0.5) == []


def test_many_acknowledgements_do_not_wait_for_a_tick(welcomed: Fake) -> None:
    for seq in range(1, 41):
        welcomed.result(seq)
    for seq in range(1, 41):
        welcomed.core.acknowledge([seq])
    assert welcomed.said() == [Ack(((1, 32),), 8)]
    welcomed.core.leave(welcomed.now)
    assert welcomed.said() == [Ack(((33, 40),), 8), Ping(1)]


def test_who_leaves_may_go_once_the_broker_has_heard_everything(welcomed: Fake) -> None:
    welcomed.result(1)
    welcomed.core.acknowledge([1])
    welcomed.core.leave(welcomed.now)
    assert welcomed.said() == [Ack(((1, 1),), 8), Ping(1)]
    assert not welcomed.core.may_go
    welcomed.hear(Pong(welcomed.broker_id, 1, 0))
    assert welcomed.core.may_go
    welcomed.core.say_goodbye()
    assert welcomed.said() == [Goodbye()]


def test_who_leaves_while_the_broker_restarts_is_heard_by_the_new_one(welcomed: Fake) -> None:
    welcomed.hear(Problem("hello_first", "", "say hello first"))
    welcomed.core.end_sampling("s")
    welcomed.core.leave(welcomed.now)
    assert [type(each) for each in welcomed.said()] == [Hello]
    assert not welcomed.core.may_go
    welcomed.welcome()
    assert welcomed.said() == [EndSample("s"), Ping(1)]
    assert not welcomed.core.may_go
    welcomed.hear(Pong(welcomed.broker_id, 1, 0))
    assert welcomed.core.may_go


def test_who_was_never_welcomed_may_go(broker: Fake) -> None:
    broker.core.leave(broker.now)
    assert broker.core.may_go


def test_results_acknowledged_in_an_earlier_life_are_known_from_the_welcome(broker: Fake) -> None:
    broker.welcome(unacked=2, acked_through=5)
    broker.result(5)
    broker.result(6)
    broker.result(7)
    assert [each.seq for each in broker.core.results] == [6, 7]
    assert broker.core.owed == 0


def test_what_is_held_in_groups_is_told_once(welcomed: Fake) -> None:
    for seq in (1, 2, 4):
        welcomed.core.hold(seq)
    assert welcomed.passes(0.5) == [Ack((), 8, ((1, 2), (4, 4)))]
    assert welcomed.passes(0.5) == []


def test_a_hello_voids_what_was_held(welcomed: Fake) -> None:
    welcomed.core.hold(1)
    welcomed.hear(Problem("hello_first", "kind", "say hello first"))
    assert welcomed.said() == [Hello("trainer", 8)]
    broker_says_again = welcomed.passes(0.5)
    assert not [message for message in broker_says_again if isinstance(message, Ack)]


def test_a_client_is_idle_only_once_the_broker_owes_nothing(welcomed: Fake) -> None:
    welcomed.accept("r-1")
    assert welcomed.core.owed == 1
    ping = welcomed.ask_whether_owed()
    assert not welcomed.core.idle
    welcomed.hear(Pong("b-1", ping.nonce, 1))
    assert not welcomed.core.idle
    welcomed.result(1)
    welcomed.take()
    ping = welcomed.ask_whether_owed()
    welcomed.hear(Pong("b-1", ping.nonce, 1))
    assert welcomed.core.idle


def test_a_pong_from_before_a_submit_says_nothing_of_it(welcomed: Fake) -> None:
    ping = welcomed.ask_whether_owed()
    welcomed.accept("r-1")
    welcomed.hear(Pong("b-1", ping.nonce, 0))
    assert (welcomed.core.idle, welcomed.core.owed) == (False, 1)


def test_an_answer_to_an_older_ping_is_ignored(welcomed: Fake) -> None:
    ping = welcomed.ask_whether_owed()
    welcomed.hear(Pong("b-1", ping.nonce + 1, 0))
    assert not welcomed.core.idle


def test_a_client_with_an_unanswered_submit_is_not_idle(welcomed: Fake) -> None:
    welcomed.submit("r-1")
    welcomed.passes(0.5)
    [ping] = welcomed.passes(HEARTBEAT_S)
    welcomed.hear(Pong("b-1", ping.nonce, 0))
    assert not welcomed.core.idle


def test_what_waits_to_be_acknowledged_again_is_not_taken_for_a_result(welcomed: Fake) -> None:
    welcomed.result(1)
    welcomed.core.acknowledge([welcomed.take().seq])
    welcomed.passes(0.5)
    welcomed.accept("r-2")
    welcomed.result(1)
    ping = welcomed.ask_whether_owed()
    welcomed.hear(Pong("b-1", ping.nonce, 1))
    assert (welcomed.core.idle, welcomed.core.owed) == (False, 1)


def test_repeated_rollouts_of_a_submit_are_not_owed_anew(welcomed: Fake) -> None:
    submission = welcomed.submit("r-1", "r-2")
    welcomed.passes(0.5)
    welcomed.hear(Accepted(submission.message.submit_id, ("r-1",)))
    assert welcomed.core.owed == 1


def test_rollouts_that_a_restarted_broker_forgot_are_reported(welcomed: Fake) -> None:
    welcomed.accept("r-1", "r-2")
    welcomed.result(1, "r-1")
    welcomed.core.acknowledge([welcomed.take().seq])
    welcomed.broker_id = "b-2"
    welcomed.welcome()
    ping = welcomed.ask_whether_owed()
    with pytest.raises(StateLost, match="forgotten 1 rollouts"):
        welcomed.hear(Pong("b-2", ping.nonce, 0))
    assert welcomed.core.idle


def test_a_broker_that_lost_its_state_counts_from_1_again(welcomed: Fake) -> None:
    for seq in (1, 2, 3):
        welcomed.result(seq)
    welcomed.core.acknowledge([welcomed.take().seq])
    welcomed.broker_id = "b-2"
    welcomed.welcome()
    welcomed.result(1, "another")
    assert [each.rollout_id for each in welcomed.core.results] == ["r-2", "r-3", "another"]


def test_a_broker_that_kept_its_state_goes_on_counting(welcomed: Fake) -> None:
    for seq in (1, 2):
        welcomed.result(seq)
        welcomed.core.acknowledge([welcomed.take().seq])
    welcomed.passes(0.5)
    welcomed.broker_id = "b-2"
    welcomed.welcome(unacked=1, acked_through=1)
    welcomed.result(2)
    assert not welcomed.core.results
    assert Ack(((2, 2),), 8) in welcomed.passes(0.5)


def test_a_silent_broker_is_unreachable_after_the_patience(welcomed: Fake) -> None:
    welcomed.passes(PATIENCE_S - 0.5)
    with pytest.raises(BrokerUnreachable, match=r"not heard for 20\.5 s"):
        welcomed.passes(1.0)


def test_a_caller_that_was_busy_for_long_has_not_waited_for_the_broker(welcomed: Fake) -> None:
    welcomed.now += 100 * PATIENCE_S
    welcomed.core.tick(welcomed.now)
    assert [type(message) for message in welcomed.said()] == [Ping]


def test_pings_come_before_patience_runs_out_however_rare_heartbeats_are(broker: Fake) -> None:
    broker.hear(Welcome("b-1", ("run",), 600.0, 1000, 64, 8, 0, 0))
    assert len(broker.passes(PATIENCE_S / 2)) == 2


def test_a_replaced_client_is_told(welcomed: Fake) -> None:
    with pytest.raises(Replaced, match="said hello as 'trainer'"):
        welcomed.hear(ReplacedMessage("trainer"))


def test_questions_are_repeated_to_a_restarted_broker_until_they_are_answered(
    welcomed: Fake,
) -> None:
    cancel, status = cancel_message((), ("g",), everything=False), status_message()
    asked = [
        welcomed.core.ask(f"cancel {cancel.cancel_id}", cancel),
        welcomed.core.ask(f"status {status.request_id}", status),
    ]
    assert welcomed.said() == [cancel, status]
    welcomed.welcome()
    assert welcomed.said() == [cancel, status]
    answer = Cancelled(cancel.cancel_id, (), (), ("g",))
    welcomed.hear(answer)
    buffer, text = json_buffer("status", {"counts": {}})
    welcomed.hear(Status(status.request_id, (buffer,)), text)
    welcomed.hear(answer)
    assert [question.answer for question in asked] == [answer, {"counts": {}}]
    welcomed.welcome()
    assert welcomed.said() == []


def test_a_question_waits_for_the_welcome(broker: Fake) -> None:
    status = status_message()
    broker.core.ask(f"status {status.request_id}", status)
    assert broker.said() == []
    broker.welcome()
    assert broker.said() == [status]


def test_a_results_arrays_are_views_on_its_frames(welcomed: Fake) -> None:
    arrays = {
        "token_ids": np.arange(3, dtype=np.int32),
        "loss_mask": np.ones(3, dtype=np.uint8),
        "logprobs": np.zeros(3, dtype=np.float32),
        "extra": np.ones((2, 2)),
    }
    described = [array_buffer(name, array) for name, array in arrays.items()]
    described.append(json_buffer("init", {"a": 1}))
    frames = [bytes(frame) for _, frame in described]
    welcomed.hear(result(1, "r", buffers=tuple(buffer for buffer, _ in described)), *frames)
    rollout = welcomed.take()
    assert rollout.trajectory is not None
    assert np.shares_memory(rollout.trajectory.token_ids, np.frombuffer(frames[0], dtype=np.int32))
    assert rollout.arrays["extra"].tolist() == [[1, 1], [1, 1]]
    assert rollout.data == {"init": {"a": 1}}


def test_token_arrays_that_do_not_fit_together_are_the_brokers_fault(welcomed: Fake) -> None:
    buffer, frame = array_buffer("token_ids", np.arange(3, dtype=np.int32))
    with pytest.raises(RemoteProtocolError, match="rollout r"):
        welcomed.hear(result(1, "r", buffers=(buffer,)), frame)


@pytest.mark.parametrize(
    ("seqs", "found"),
    [([], ()), ([3], ((3, 3),)), ([2, 1, 2, 5, 6], ((1, 2), (5, 6))), ([9, 7], ((7, 7), (9, 9)))],
)
def test_sequence_numbers_compress_into_ranges(seqs: list[int], found: Any) -> None:
    assert ranges(seqs) == found
