"""The client's side of a sampling against a broker that each test plays itself."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from engine.client.sampling import Sampling, spec_of
from engine.client.source import Source
from engine.errors import Refused, SourceFailed, StateLost
from engine.messages import (
    Accepted,
    Ack,
    Batch,
    Credit,
    EndSample,
    Judged,
    Ping,
    Pong,
    Refusal,
    Sample,
    Submit,
    Wanted,
)
from engine.records import Task
from engine.sampling import BatchReport, Reason, Sealed, Spec, Tally

from .test_client_core import RETRY_S, Fake

WAIT_S = 10.0  # for a thread that answers at once
NAME = "s"
SOURCES: list[Source] = []


class Broker(Fake):
    """A core with a sampling, and the broker that it talks to."""

    def __init__(self, tasks: Iterable[Task] | None = None, **spec: Any) -> None:
        super().__init__()
        self.tasks = tasks
        self.spec = replace(Spec(1, 2), **spec)
        self.seq = 0

    def begin(self) -> None:
        """Open the sampling, once the broker has welcomed us."""
        tasks = (Task(f"t-{n}", "kind", {}) for n in range(100))
        given = tasks if self.tasks is None else self.tasks
        self.sampling = Sampling(self.core, given, self.spec, NAME, WAIT_S)
        SOURCES.append(self.sampling._source)

    def wants(self, prompts: int, accepted: int = 0, taken: int = 0, *refills: Any) -> list[Submit]:
        """Want prompts; return what is submitted, each accepted."""
        self.hear(Wanted(NAME, prompts, accepted, taken, tuple(refills)))
        return self.submits()

    def submits(self) -> list[Submit]:
        self.sampling.step(WAIT_S)
        self.core.tick(self.now)
        submits = [message for message in self.said() if isinstance(message, Submit)]
        for submit in submits:
            self.hear(Accepted(submit.submit_id, ()))
        return submits

    def comes(self, *names: str, **changes: Any) -> None:
        """Deliver the results of these rollouts, named prompt-member."""
        for name in names:
            self.seq += 1
            prompt = int(name.split("-")[0])
            self.result(
                self.seq, f"{NAME}-{name}", **{"sampling_id": NAME, "prompt": prompt, **changes}
            )

    def seals(self, number: int, *prompts: int, final: bool = True, **changes: Any) -> None:
        """Say that a batch is complete."""
        plain = Sealed(number, "complete", "", prompts, (), (), BatchReport(), last=False)
        self.hear(Batch(NAME, replace(plain, **changes), final))

    def told(self) -> list[Sample]:
        return [message for message in self.said() if isinstance(message, Sample)]

    def names(self) -> list[list[str]]:
        """Name the rollouts of the next batch's groups; [] if there is none yet."""
        batch = self.sampling.batch()
        if batch is None:
            return []
        return [[each.rollout_id for each in group] for group in batch.groups]

    def acks(self) -> list[tuple[int, int]]:
        return [pair for each in self.passes(0.5) if isinstance(each, Ack) for pair in each.seqs]


@pytest.fixture(autouse=True)
def _sources() -> Iterator[None]:
    """Let the threads of all sources end with their test."""
    yield
    while SOURCES:
        SOURCES.pop().close()


@pytest.fixture
def broker() -> Broker:
    return open_broker()


def open_broker(tasks: Iterable[Task] | None = None, **spec: Any) -> Broker:
    """Return a broker with a sampling of this spec, which is open."""
    fake = Broker(tasks, **spec)
    fake.welcome()
    fake.begin()
    fake.hear(Wanted(NAME, 0, 0, 0))
    fake.said()
    return fake


def names_of(submits: list[Submit]) -> list[tuple[str, ...]]:
    return [submit.rollout_ids for submit in submits]


# Prompts


def test_a_sampling_opens_with_what_it_has() -> None:
    fake = Broker()
    fake.begin()
    assert fake.told() == []
    fake.welcome()
    assert fake.told() == [Sample(NAME, fake.spec, again=True)]
    fake.welcome()
    assert fake.told() == [Sample(NAME, fake.spec, again=True)]


def test_prompts_are_submitted_as_they_are_wanted(broker: Broker) -> None:
    submits = broker.wants(2)
    assert names_of(submits) == [("s-0-0", "s-0-1"), ("s-1-0", "s-1-1")]
    assert [(each.sampling_id, each.prompt, each.group_id) for each in submits] == [
        (NAME, 0, "s-0"),
        (NAME, 1, "s-1"),
    ]
    assert broker.wants(2) == []
    assert [each.prompt for each in broker.wants(3)] == [2]


def test_a_new_life_skips_prompts_that_were_accepted(broker: Broker) -> None:
    broker.sampling.leave()
    broker.begin()
    assert [each.task_id for each in broker.wants(4, 3, 1)] == ["t-3"]


def test_less_credit_after_a_restart_of_the_broker_takes_nothing_back(broker: Broker) -> None:
    broker.wants(3)
    assert broker.wants(2, 2) == []
    assert [each.prompt for each in broker.wants(4, 3)] == [3]


def test_a_submit_without_room_waits_and_is_repeated(broker: Broker) -> None:
    broker.hear(Wanted(NAME, 1, 0, 0))
    broker.sampling.step(WAIT_S)
    [submit] = [m for m in broker.passes(0.5) if isinstance(m, Submit)]
    broker.hear(Refusal(submit.submit_id, "full", "no room"))
    assert submit in broker.passes(3 * RETRY_S)
    broker.hear(Refusal(submit.submit_id, "full", "no room"))
    broker.hear(Credit(2, 100))
    assert submit in broker.passes(0.5)
    assert broker.sampling.batch() is None


def test_a_submit_that_is_refused_is_raised_to_whoever_waits_for_batches(broker: Broker) -> None:
    broker.hear(Wanted(NAME, 1, 0, 0))
    broker.sampling.step(WAIT_S)
    [submit] = [m for m in broker.passes(0.5) if isinstance(m, Submit)]
    broker.hear(Refusal(submit.submit_id, "conflict", "another's"))
    broker.sampling.step(0.0)
    with pytest.raises(Refused, match="another's"):
        broker.sampling.batch()


def test_a_sampling_that_the_broker_will_not_have_is_refused(broker: Broker) -> None:
    broker.hear(Refusal(NAME, "hello_first", "later"))
    assert broker.sampling.batch() is None
    broker.hear(Refusal(NAME, "invalid", "no such filter"))
    with pytest.raises(Refused, match="no such filter"):
        broker.sampling.batch()


@pytest.mark.parametrize(("accepted", "taken"), [(1, 1), (2, 0)])
def test_a_broker_that_forgets_what_it_told_has_lost_its_state(accepted: int, taken: int) -> None:
    broker = open_broker()
    broker.wants(2, 2, 1)
    broker.hear(Wanted(NAME, 2, accepted, taken))
    with pytest.raises(StateLost):
        broker.sampling.batch()


def test_batches_taken_at_once_may_be_forgotten_in_a_crash() -> None:
    broker = open_broker(ahead=1)
    broker.wants(2)
    broker.comes("0-0", "0-1", "1-0", "1-1")
    broker.seals(0, 0)
    broker.seals(1, 1)
    for _ in range(2):
        assert broker.sampling.batch()
        broker.sampling.take()
    broker.welcome()
    assert broker.told()[-1].taken == 2
    broker.hear(Wanted(NAME, 2, 2, 0))
    assert broker.sampling.batch() is None


# Sources


def test_the_end_of_the_source_is_told_once_all_of_it_is_accepted() -> None:
    fake = open_broker([Task("t-0", "kind", {})])
    fake.hear(Wanted(NAME, 5, 0, 0))
    fake.sampling.step(WAIT_S)
    [submit] = [m for m in fake.passes(0.5) if isinstance(m, Submit)]
    fake.sampling.step(WAIT_S)
    assert fake.told() == []
    fake.hear(Accepted(submit.submit_id, ()))
    fake.sampling.step(WAIT_S)
    [told] = fake.told()
    assert (told.source, told.given, told.why) == ("ended", 1, "the prompts have ended")
    fake.sampling.step(WAIT_S)
    assert fake.told() == []
    fake.welcome()
    assert [each.source for each in fake.told()] == ["ended"]


def test_a_source_that_raises_is_told_and_raised_after_the_last_batch() -> None:
    def failing() -> Iterator[Task]:
        yield Task("t-0", "kind", {})
        raise ValueError("no such file")

    fake = open_broker(failing())
    fake.wants(2)
    fake.sampling.step(WAIT_S)
    [told] = fake.told()
    assert (told.source, told.given) == ("failed", 1)
    assert "ValueError: no such file" in told.why
    fake.comes("0-0", "0-1")
    fake.seals(0, 0, reason="failed", why=told.why, last=True)
    assert fake.names() == [["s-0-0", "s-0-1"]]
    with pytest.raises(SourceFailed, match="no such file") as raised:
        fake.sampling.take()
    assert isinstance(raised.value.__cause__, ValueError)
    assert fake.sampling.is_over


@pytest.mark.parametrize("reason", ["failed", "blocked", "filter", "full"])
def test_a_last_batch_with_nothing_in_it_is_not_given(reason: Reason) -> None:
    broker = open_broker()
    broker.seals(0, reason=reason, why="because", last=True)
    with pytest.raises(SourceFailed, match="because"):
        broker.sampling.batch()


@pytest.mark.parametrize("reason", ["ended", "cancelled"])
def test_a_sampling_that_just_ends_raises_nothing(reason: Reason) -> None:
    broker = open_broker()
    broker.seals(0, reason=reason, why="because", last=True)
    assert broker.sampling.batch() is None
    assert broker.sampling.is_over


def test_a_last_batch_that_only_dropped_is_given() -> None:
    broker = open_broker()
    report = BatchReport(dropped=Tally(1, 2, 20, 1.0))
    broker.seals(0, reason="ended", why="because", last=True, report=report)
    batch = broker.sampling.batch()
    assert batch is not None
    assert (batch.groups, batch.report.dropped.groups) == ([], 1)


# Results


def test_a_batch_is_given_once_all_of_its_results_are_here(broker: Broker) -> None:
    broker.wants(1)
    broker.comes("0-0")
    broker.seals(0, 0)
    assert broker.sampling.batch() is None
    broker.comes("0-1")
    assert broker.names() == [["s-0-0", "s-0-1"]]
    broker.sampling.take()
    assert [each.taken for each in broker.told()] == [1]
    assert broker.acks() == []


def test_results_that_come_before_their_batch_are_held(broker: Broker) -> None:
    broker.comes("0-0", "0-1")
    acks = [each for each in broker.passes(0.5) if isinstance(each, Ack)]
    assert acks == [Ack((), 8, ((1, 2),))]
    broker.seals(0, 0)
    assert broker.names() == [["s-0-0", "s-0-1"]]


def test_a_verdict_acknowledges_what_is_here_and_what_comes(broker: Broker) -> None:
    broker.comes("0-0")
    broker.hear(Judged(NAME, ((0, "dropped"),)))
    broker.hear(Judged(NAME, ((0, "dropped"),)))
    assert broker.acks() == [(1, 1)]
    broker.comes("0-1")
    assert broker.acks() == [(2, 2)]


def test_results_of_a_batch_that_was_taken_are_acknowledged(broker: Broker) -> None:
    broker.comes("0-0", "0-1")
    broker.seals(0, 0)
    broker.names()
    broker.sampling.take()
    broker.passes(0.5)
    broker.comes("0-2")
    assert broker.acks() == [(3, 3)]


def test_what_others_stand_in_for_is_left_out(broker: Broker) -> None:
    broker.comes("0-0", "0-1", "0-2")
    broker.seals(0, 0, left_out=("s-0-0",))
    assert broker.names() == [["s-0-1", "s-0-2"]]


def test_what_is_withheld_is_not_trainable(broker: Broker) -> None:
    broker.comes("0-0", "0-1")
    broker.seals(0, 0, withheld=("s-0-1",))
    batch = broker.sampling.batch()
    assert batch is not None
    assert [each.trainable for each in batch.groups[0]] == [True, False]


@pytest.mark.parametrize("taken", [False, True])
def test_a_report_is_brought_up_to_date_also_after_the_batch_was_taken(taken: bool) -> None:
    broker = open_broker()
    broker.comes("0-0", "0-1")
    broker.seals(0, 0, final=False)
    batch = broker.sampling.batch()
    assert batch is not None
    if taken:
        broker.sampling.take()
    broker.seals(0, 0, report=BatchReport(cancelled=Tally(1, 2, 20, 1.0)))
    assert (batch.is_final, batch.report.cancelled.rollouts) == (True, 2)
    assert 0 not in broker.sampling._batches or not taken


def test_a_batch_that_is_told_again_is_given_once(broker: Broker) -> None:
    broker.comes("0-0", "0-1", "1-0", "1-1")
    broker.seals(0, 0)
    broker.names()
    broker.sampling.take()
    broker.seals(0, 0)
    assert broker.sampling.batch() is None
    broker.seals(1, 1)
    assert broker.names() == [["s-1-0", "s-1-1"]]


# Refills


def test_refills_are_submitted_once_in_the_prompts_group() -> None:
    broker = open_broker(staleness="refill")
    broker.wants(1)
    assert names_of(broker.wants(1, 1, 0, (0, 3))) == [("s-0-2",)]
    assert broker.wants(1, 1, 0, (0, 3)) == []
    [submit] = broker.wants(1, 1, 0, (0, 4))
    assert (submit.rollout_ids, submit.group_id, submit.task_id) == (("s-0-3",), "s-0", "t-0")


def test_refills_are_submitted_after_the_end_of_the_source() -> None:
    fake = open_broker([Task("t-0", "kind", {})], staleness="refill")
    fake.wants(2)
    fake.sampling.step(WAIT_S)
    assert [each.source for each in fake.told()] == ["ended"]
    assert names_of(fake.wants(2, 1, 0, (0, 3))) == [("s-0-2",)]


def test_a_new_life_submits_refills_of_prompts_that_it_has_skipped() -> None:
    broker = open_broker(staleness="refill")
    broker.sampling.leave()
    broker.begin()
    assert broker.wants(2, 2, 0, (1, 7)) == []
    submits = broker.submits()
    assert names_of(submits) == [("s-1-2", "s-1-3"), ("s-1-4", "s-1-5"), ("s-1-6",)]
    assert {each.task_id for each in submits} == {"t-1"}


def test_a_decided_prompt_is_not_refilled() -> None:
    broker = open_broker(staleness="refill")
    broker.wants(1)
    broker.hear(Judged(NAME, ((0, "stale"),)))
    assert broker.wants(1, 1, 0, (0, 3)) == []


# Lives


def test_results_that_come_before_the_call_are_its_own() -> None:
    fake = Broker()
    fake.welcome(unacked=3)
    fake.comes("0-0", "0-1")
    fake.result(3, "plain")
    assert [each.rollout_id for each in fake.core.results] == ["plain"]
    fake.begin()
    fake.hear(Wanted(NAME, 1, 1, 0))
    fake.seals(0, 0)
    assert fake.names() == [["s-0-0", "s-0-1"]]
    assert len(fake.core.results) == 1


def test_a_sampling_that_was_left_and_is_opened_again_has_its_results(broker: Broker) -> None:
    broker.wants(2)
    broker.comes("0-0", "0-1", "1-0")
    broker.seals(0, 0)
    assert broker.names() == [["s-0-0", "s-0-1"]]
    broker.sampling.leave()
    broker.comes("1-1")
    assert not broker.core.results
    broker.begin()
    assert [each.again for each in broker.told()] == [True]
    broker.hear(Wanted(NAME, 2, 2, 0))
    broker.seals(0, 0)
    assert broker.names() == [["s-0-0", "s-0-1"]]
    broker.sampling.take()
    broker.seals(1, 1)
    assert broker.names() == [["s-1-0", "s-1-1"]]


def test_a_sampling_that_is_opened_again_knows_what_was_taken_here(broker: Broker) -> None:
    broker.comes("0-0", "0-1")
    broker.seals(0, 0)
    broker.names()
    broker.sampling.take()
    broker.sampling.leave()
    broker.said()
    broker.begin()
    assert [each.taken for each in broker.told()] == [1]
    broker.hear(Wanted(NAME, 1, 1, 0))  # a crash has lost that
    broker.seals(0, 0)
    assert broker.sampling.batch() is None


def test_no_batch_is_given_before_the_broker_said_how_far_it_is(broker: Broker) -> None:
    broker.sampling.leave()
    broker.begin()
    broker.seals(0, 0)
    broker.seals(1, 1)
    broker.comes("0-0", "0-1", "1-0", "1-1")
    assert broker.sampling.batch() is None
    broker.hear(Wanted(NAME, 2, 2, 0))
    broker.hear(Wanted(NAME, 2, 2, 1))
    assert broker.names() == [["s-1-0", "s-1-1"]], "the first was meant for the one before"


@pytest.mark.parametrize("named", [True, False])
def test_a_client_that_closes_ends_what_nobody_could_open_again(named: bool) -> None:
    fake = Broker()
    fake.welcome()
    sampling = Sampling(fake.core, (), fake.spec, NAME if named else None, WAIT_S)
    fake.said()
    fake.core.leave(fake.now)
    said = [type(message) for message in fake.said()]
    assert said == ([Ping] if named else [EndSample, Ping])
    sampling.finish()
    assert fake.said() == []


def test_leaving_repeats_no_submit(broker: Broker) -> None:
    broker.hear(Wanted(NAME, 1, 0, 0))
    broker.sampling.step(WAIT_S)
    broker.passes(0.5)
    broker.sampling.leave()
    assert not [m for m in broker.passes(15 * RETRY_S) if isinstance(m, Submit | Sample)]


def test_a_closed_sampling_is_told_again_and_its_results_are_acknowledged() -> None:
    broker = open_broker()
    broker.wants(1)
    broker.comes("0-0")
    broker.sampling.close()
    assert EndSample(NAME) in broker.passes(0.5)
    broker.comes("0-1")
    assert broker.acks() == [(2, 2)]
    assert not broker.core.results
    broker.welcome()
    assert broker.said()[0] == EndSample(NAME)


def test_what_a_closed_sampling_is_never_sent_is_not_missed() -> None:
    broker = open_broker()
    broker.wants(2)
    broker.comes("0-0")
    broker.sampling.close()
    ping = broker.ask_whether_owed()
    broker.hear(Pong("b-1", ping.nonce, 0))
    assert broker.core.idle


def test_a_name_that_is_opened_again_is_not_closed_at_the_next_welcome() -> None:
    broker = open_broker()
    broker.sampling.close()
    broker.begin()
    broker.said()
    broker.welcome()
    assert not [message for message in broker.said() if isinstance(message, EndSample)]


@pytest.mark.parametrize(
    "wrong", [{"groups": 0}, {"group_size": 0}, {"ahead": -1}, {"members": -1}, {"in_flight": -1}]
)
def test_numbers_out_of_bounds_are_a_value_error(wrong: dict[str, int]) -> None:
    right = {"groups": 1, "group_size": 1, "ahead": 0, "members": 0, "in_flight": 0, **wrong}
    with pytest.raises(ValueError, match="at least"):
        spec_of(
            *(right["groups"], right["group_size"], ("all", {"low": 1}), "cancel"),
            *(right["ahead"], right["members"], "none", 1),
            stop_early=False,
            margin=0.0,
            in_flight=right["in_flight"],
        )
