"""Leases, fences, late results and adoption."""

from engine.ledger import (
    Deliver,
    Dispatch,
    Keep,
    PipeClosed,
    Settle,
    StageDone,
    StopAttempts,
    Tick,
)
from engine.messages import HeartbeatReply, HelloAgain, Problem, WorkerWelcome
from engine.records import Failure

from ..ledger_kit import RULES, Driver


def leased(ledger: Driver, *names: str, slots: int = 2) -> None:
    """Submit rollouts and give them to worker w1, in its first stage."""
    ledger.client()
    ledger.submit(*names)
    ledger.worker("w1", slots=slots)


def drops(ledger: Driver) -> list[tuple[str, int]]:
    answers = [*ledger.told(HeartbeatReply), *ledger.told(WorkerWelcome)]
    return [held for answer in answers for held in answer.drop]


def expire(ledger: Driver) -> None:
    """Let w1 fall silent for as long as a lease lasts."""
    ledger.tick(RULES.lease_s + 0.1)


def failures(ledger: Driver, rollout_id: str) -> list[str]:
    """Return why attempts of a rollout that lives have failed, as far as its result would say."""
    return [each.error for each in ledger.ledger._books.rollouts[rollout_id].failures]


def test_heartbeats_renew_a_lease_however_long_the_work_takes(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.beat(20, w1=[("r1", 1)])
    assert ledger.state("r1") == "leased"


def test_a_lease_that_nobody_renews_ends_and_the_rollout_is_ready(ledger: Driver) -> None:
    leased(ledger, "r1")
    expire(ledger)
    assert ledger.state("r1") == "ready"
    assert ledger.only(StopAttempts) == [StopAttempts((("r1", 1),))]


def test_no_lease_ends_while_the_broker_itself_stood_still(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.now += RULES.lease_s + 0.1
    ledger.handle(Tick(stood_still=True))
    assert ledger.state("r1") == "leased"
    expire(ledger)
    assert ledger.state("r1") == "ready"


def test_a_heartbeat_that_lacks_an_attempt_does_not_renew_it(ledger: Driver) -> None:
    leased(ledger, "r1", "r2")
    ledger.beat(RULES.lease_s, w1=[("r2", 1)])
    assert ("r1", 2) in ledger.attempts("w1")
    assert ledger.state("r2") == "leased"


def test_what_did_not_reach_a_worker_is_given_to_another_and_blamed_on_nobody(
    ledger: Driver,
) -> None:
    leased(ledger, "r1", "r2")
    ledger.worker("w2")
    for _ in range(3):  # more than it takes to be a suspect
        ledger.beat(RULES.lease_s, w1=[("r2", 1)], w2=[])
    assert ledger.ledger.status(ledger.now)["counts"]["undelivered"] == 3
    assert ledger.state("r1") == "leased"
    assert failures(ledger, "r1") == []
    assert ledger.attempts("w2")[0] == ("r1", 2)


def test_what_reaches_no_worker_ends_in_the_end(ledger: Driver) -> None:
    leased(ledger, "r1")
    ended = []
    while not ended and ledger.now < 1_000:
        ledger.beat(RULES.heartbeat_s, w1=[])
        ended = ledger.only(Deliver)
    assert (ended[0].result.outcome, ended[0].result.reward) == ("failed", None)
    assert {failure.error for failure in ended[0].result.failures} == {"Undelivered"}


def test_a_lease_that_its_worker_had_and_lost_is_no_lost_delivery(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.heartbeat("w1", ("r1", 1))
    ledger.beat(RULES.lease_s, w1=[])
    assert failures(ledger, "r1") == ["LeaseExpired"]


def test_a_worker_whose_pipe_was_closed_is_asked_and_given_nothing(ledger: Driver) -> None:
    leased(ledger)
    ledger.handle(PipeClosed("w1"))
    assert ledger.told(HelloAgain)
    ledger.submit("r1")
    assert not ledger.only(Dispatch)
    ledger.heartbeat("w1")
    assert ledger.told(HelloAgain), "the first may have been lost"
    assert not ledger.only(Dispatch)
    ledger.worker("w1")
    assert ledger.attempts("w1") == [("r1", 1)]


def test_what_was_in_a_closed_pipe_is_given_away_and_what_had_arrived_goes_on(
    ledger: Driver,
) -> None:
    leased(ledger, "r1", "r2", "r3", slots=3)
    ledger.cancel("r3")
    ledger.handle(PipeClosed("w1"))
    ledger.worker("w1", slots=3, held=[("r1", 1)])
    assert not drops(ledger)
    assert ledger.attempts("w1") == [("r1", 1), ("r2", 1), ("r3", 1), ("r2", 2)]
    assert [each.result.outcome for each in ledger.only(Deliver)] == ["cancelled"]
    assert ledger.only(StopAttempts) == [StopAttempts((("r2", 1),)), StopAttempts((("r3", 1),))]
    ledger.heartbeat("w1", ("r2", 1))
    assert drops(ledger) == [("r2", 1)], "it came after all"


def test_leases_that_end_behind_a_closed_pipe_make_nobody_a_suspect(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.heartbeat("w1", ("r1", 1))
    ledger.handle(PipeClosed("w1"))
    expire(ledger)
    assert ledger.state("r1") == "ready"
    assert failures(ledger, "r1") == []
    ledger.worker("w1", held=[("r1", 1)])
    assert not drops(ledger)
    assert ledger.state("r1") == "leased"


def test_a_silent_worker_is_given_nothing_until_it_is_heard(ledger: Driver) -> None:
    leased(ledger)
    expire(ledger)
    ledger.submit("r1")
    assert not ledger.only(Dispatch)
    ledger.heartbeat("w1")
    assert ledger.only(Dispatch)


def test_a_worker_unheard_of_for_long_must_say_hello_again(ledger: Driver) -> None:
    leased(ledger)
    ledger.tick(10 * RULES.lease_s + 1)
    ledger.heartbeat("w1")
    assert ledger.told(HelloAgain)


def test_a_worker_of_no_stage_is_told_so(ledger: Driver) -> None:
    ledger.worker("w1", "fly")
    assert ledger.told(Problem)[0].field == "stage"


def test_a_worker_that_comes_back_in_time_keeps_its_attempt(ledger: Driver) -> None:
    leased(ledger, "r1")
    expire(ledger)
    ledger.heartbeat("w1", ("r1", 1))
    assert not drops(ledger)
    assert ledger.attempts("w1") == [("r1", 1)]
    assert ledger.state("r1") == "leased"


def test_a_worker_that_comes_back_too_late_is_told_to_drop(ledger: Driver) -> None:
    leased(ledger, "r1")
    expire(ledger)
    ledger.worker("w2")
    assert ledger.attempts("w2") == [("r1", 2)]
    ledger.heartbeat("w1", ("r1", 1))
    assert drops(ledger) == [("r1", 1)]


def test_an_old_attempt_neither_renews_nor_ends_a_newer_one(ledger: Driver) -> None:
    leased(ledger, "r1")
    expire(ledger)
    ledger.worker("w2")
    ledger.heartbeat("w1", ("r1", 1))
    ledger.result("w1", "r1", 1, "failed")
    assert ledger.only(Settle) == [Settle("w1", "r1", 1)]
    assert ledger.state("r1") == "leased"
    ledger.beat(RULES.lease_s, w1=[("r1", 1)])
    assert ledger.attempts("w1")[-1] == ("r1", 3)


def test_an_old_attempt_does_not_renew_a_newer_one_on_the_same_worker(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.beat(RULES.lease_s, w1=[])
    assert ledger.attempts("w1") == [("r1", 1), ("r1", 2)]
    ledger.beat(RULES.lease_s, w1=[("r1", 1)])
    assert ledger.attempts("w1")[-1] == ("r1", 3)


def test_another_workers_word_for_the_same_attempt_number_is_not_taken(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.worker("w2")
    ledger.result("w2", "r1", 1, "failed")
    assert ledger.state("r1") == "leased"


def test_a_late_result_is_taken_if_none_is_committed(ledger: Driver) -> None:
    leased(ledger, "r1")
    expire(ledger)
    ledger.worker("w2")
    ledger.result("w1", "r1", 1)
    assert ledger.only(StopAttempts) == [StopAttempts((("r1", 2),))]
    assert ledger.entries(StageDone)[0].attempt == 1
    ledger.heartbeat("w2", ("r1", 2))
    assert drops(ledger) == [("r1", 2)]


def test_a_late_result_stops_a_newer_attempt_on_the_same_worker(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.beat(RULES.lease_s, w1=[])
    assert ledger.attempts("w1") == [("r1", 1), ("r1", 2)]
    ledger.result("w1", "r1", 1)
    assert ledger.only(StopAttempts) == [StopAttempts((("r1", 2),))]


def test_the_newer_attempt_is_stopped_only_once_the_late_result_is_kept(ledger: Driver) -> None:
    leased(ledger, "r1")
    expire(ledger)
    ledger.worker("w2")
    ledger.result("w1", "r1", 1)
    kinds = [type(instruction) for instruction in ledger.last]
    assert kinds.index(Keep) < kinds.index(StopAttempts)


def test_a_second_result_of_a_stage_is_settled_and_not_committed(ledger: Driver) -> None:
    leased(ledger, "r1")
    expire(ledger)
    ledger.worker("w2")
    ledger.result("w1", "r1", 1)
    ledger.result("w2", "r1", 2)
    assert ledger.last == [Settle("w2", "r1", 2)]


def test_a_repeated_result_is_settled_again(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.result("w1", "r1", 1)
    assert ledger.result("w1", "r1", 1) == [Settle("w1", "r1", 1)]


def test_an_attempt_that_has_reported_its_failure_is_not_adopted(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.result("w1", "r1", 1, "failed")
    ledger.heartbeat("w1", ("r1", 1))
    assert drops(ledger) == [("r1", 1)]
    assert ledger.state("r1") == "delayed"


def test_an_attempt_that_was_given_back_is_not_adopted(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.credit("w1", 0)
    ledger.result("w1", "r1", 1, "released")
    ledger.heartbeat("w1", ("r1", 1))
    assert drops(ledger) == [("r1", 1)]
    assert ledger.state("r1") == "ready"


def test_a_worker_that_runs_one_suspect_alone_adopts_no_other(ledger: Driver) -> None:
    leased(ledger, "r1", "r2", slots=1)
    for number in range(2):
        ledger.lost(f"w{number + 1}")
        ledger.worker(f"w{number + 2}", slots=1)
    assert ledger.attempts("w3") == [("r1", 3)]
    ledger.heartbeat("w3", ("r1", 3), ("r2", 9))
    assert ("r2", 9) in drops(ledger)


def test_a_new_broker_adopts_what_its_workers_hold(ledger: Driver) -> None:
    leased(ledger, "r1", "r2")
    ledger.restart()
    ledger.worker("w1", held=[("r1", 1), ("r2", 1)])
    assert not drops(ledger)
    assert not ledger.only(Dispatch)
    assert {ledger.state("r1"), ledger.state("r2")} == {"leased"}


def test_a_number_that_a_worker_has_held_is_never_given_again(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.restart()
    ledger.worker("w2", held=[("r1", 1)])
    ledger.worker("w1", held=[("r1", 2)])
    assert drops(ledger) == [("r1", 2)]
    ledger.result("w2", "r1", 1, "released")
    assert ledger.only(Dispatch)[0].attempt == 3


def test_a_result_that_comes_before_its_workers_hello_is_taken(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.restart()
    ledger.result("w1", "r1", 1)
    assert ledger.entries(StageDone)
    ledger.worker("w1", held=[("r1", 1)])
    assert drops(ledger) == [("r1", 1)]
    ledger.worker("w2", "run")
    assert ledger.attempts("w2") == [("r1", 2)]


def test_a_pinned_result_waits_until_its_worker_has_named_its_host(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.restart()
    ledger.result("w1", "r1", 1, pinned=True)
    assert not ledger.only(Keep)
    assert not ledger.only(Settle)
    assert ledger.told(HelloAgain)
    ledger.worker("w1", held=[("r1", 1)])
    ledger.result("w1", "r1", 1, pinned=True)
    assert ledger.entries(StageDone)[0].host == "a"


def test_a_failure_names_the_attempt_it_belongs_to(ledger: Driver) -> None:
    leased(ledger, "r1")
    wrong = Failure("eval", 70, "sandbox", "SandboxError", "no space")
    ledger.result("w1", "r1", 1, "failed", failure=wrong, retry=False)
    failure = ledger.only(Deliver)[0].result.failures[0]
    assert (failure.stage, failure.attempt) == ("init", 1)
