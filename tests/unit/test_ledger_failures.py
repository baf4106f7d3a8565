"""Retries, delays, and workers that go: who is blamed, and who runs alone."""

import pytest

from engine.ledger import AttemptFailed, Deliver, Dispatch
from engine.messages import Result

from ..ledger_kit import RULES, Driver


def leased(ledger: Driver, *names: str, slots: int = 2) -> None:
    ledger.client()
    ledger.submit(*names)
    ledger.worker("w1", slots=slots)


def delivered(ledger: Driver) -> Result:
    return ledger.only(Deliver)[0].result


def kill(ledger: Driver, number: int, culprit: str = "", slots: int = 2) -> str:
    """Let worker w<number> go; its node's next process is w<number + 1>."""
    ledger.lost(f"w{number}", culprit)
    name = f"w{number + 1}"
    ledger.worker(name, slots=slots)
    return name


def test_a_failed_attempt_is_tried_again_after_a_wait_that_doubles(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.result("w1", "r1", 1, "failed")
    ledger.heartbeat("w1")
    ledger.tick(RULES.retry_delay_s - 0.1)
    assert not ledger.only(Dispatch)
    ledger.tick(0.1)
    assert ledger.only(Dispatch)[0].attempt == 2
    ledger.result("w1", "r1", 2, "failed")
    ledger.heartbeat("w1")
    ledger.tick(RULES.retry_delay_s * 2 - 0.1)
    assert not ledger.only(Dispatch)
    ledger.tick(0.1)
    assert ledger.only(Dispatch)[0].attempt == 3


def test_a_stages_last_failed_attempt_ends_the_rollout_without_a_reward(ledger: Driver) -> None:
    leased(ledger, "r1")
    for attempt in range(1, 4):
        ledger.result("w1", "r1", attempt, "failed", reward=0.0)
        ended = ledger.only(Deliver)
        ledger.tick(10)
        ledger.heartbeat("w1")
    result = ended[0].result
    assert (result.outcome, result.reward, result.trainable) == ("failed", None, False)
    assert [failure.attempt for failure in result.failures] == [1, 2, 3]


def test_a_failure_that_no_attempt_can_mend_ends_the_rollout_at_once(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.result("w1", "r1", 1, "failed", retry=False)
    assert delivered(ledger).outcome == "failed"


def test_attempts_are_counted_for_each_stage_anew(ledger: Driver) -> None:
    leased(ledger, "r1")
    for attempt in (1, 2):
        ledger.result("w1", "r1", attempt, "failed")
        ledger.heartbeat("w1")
        ledger.tick(RULES.retry_delay_s * attempt)
    ledger.result("w1", "r1", 3)
    ledger.worker("w2", "run")
    ledger.result("w2", "r1", 4, "failed")
    assert ledger.state("r1") == "delayed"


def test_another_worker_is_preferred_after_a_failure(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.worker("w2")
    ledger.result("w1", "r1", 1, "failed")
    ledger.tick(RULES.retry_delay_s)
    assert ledger.attempts("w2") == [("r1", 2)]


def test_work_given_back_counts_against_nobody(ledger: Driver) -> None:
    leased(ledger, "r1")
    for attempt in range(1, 10):
        ledger.result("w1", "r1", attempt, "released")
    assert not ledger.entries(AttemptFailed)
    assert ledger.state("r1") == "leased"


def test_only_the_culprit_is_blamed_for_a_lost_worker(ledger: Driver) -> None:
    leased(ledger, "r1", "r2")
    ledger.lost("w1", culprit="r2")
    assert [entry.counted for entry in ledger.entries(AttemptFailed)] == [True]
    assert (ledger.state("r1"), ledger.state("r2")) == ("ready", "delayed")


def test_a_rollout_that_kills_every_worker_ends_as_failed(ledger: Driver) -> None:
    leased(ledger, "r1")
    for number in range(1, 4):
        ledger.lost(f"w{number}", culprit="r1")
        ended = ledger.only(Deliver)
        ledger.worker(f"w{number + 1}")
        ledger.tick(10)
        ledger.heartbeat(f"w{number + 1}")
    assert ended[0].result.outcome == "failed"
    assert ended[0].result.failures[-1].error == "Died"


def test_a_worker_that_leaves_is_blamed_on_nobody(ledger: Driver) -> None:
    leased(ledger, "r1")
    ledger.goodbye("w1")
    assert not ledger.entries(AttemptFailed)
    assert ledger.state("r1") == "ready"


def test_a_new_process_of_a_node_ends_the_one_before(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.worker("w1", node="init-0")
    ledger.worker("w2", node="init-0")
    assert ledger.attempts("w2") == [("r1", 2)]


def test_who_was_there_at_two_unexplained_ends_runs_alone(ledger: Driver) -> None:
    leased(ledger, "r1", "r2")
    kill(ledger, 1)
    name = kill(ledger, 2)
    assert ledger.attempts(name) == [("r1", 3)]
    ledger.result(name, "r1", 3)
    assert ledger.attempts(name) == [("r1", 3), ("r2", 3)]


def test_a_suspect_that_kills_its_worker_alone_convicts_itself(ledger: Driver) -> None:
    leased(ledger, "bad", "good")
    name = kill(ledger, 1)
    name = kill(ledger, 2)
    assert ledger.attempts(name)[0][0] == "bad"
    outcomes = []
    for number in range(3, 20):
        if ("bad", number) in ledger.attempts(f"w{number}"):
            ledger.lost(f"w{number}")
            outcomes += [d.result.outcome for d in ledger.only(Deliver)]
            ledger.worker(f"w{number + 1}")
            ledger.tick(5)
            ledger.heartbeat(f"w{number + 1}")
        else:
            break
    for rollout in ("bad", "good"):
        assert ledger.ledger._books.rollouts[rollout].failed <= RULES.stages[0].attempts
    assert "good" not in [failed for failed in outcomes if failed == "failed"]


def test_a_worker_is_emptied_for_a_suspect(ledger: Driver) -> None:
    leased(ledger, "r1")
    kill(ledger, 1)
    ledger.lost("w2")
    ledger.submit("r2", "r3", "r4", group="second")
    ledger.worker("w3", slots=2)
    assert ledger.attempts("w3") == [("r1", 3)]


def make_suspect(ledger: Driver) -> None:
    """Leave r1 as a suspect, and w1 busy with r2 and reserved for r1."""
    leased(ledger, "r1", slots=1)
    ledger.lost("w1")
    ledger.worker("w2", slots=1)
    ledger.submit("r2", "r3", "r4", "r5", group="second")
    ledger.worker("w8", slots=1)
    ledger.worker("w9", slots=2)
    ledger.lost("w2")


def test_another_worker_is_emptied_if_the_first_one_is_lost(ledger: Driver) -> None:
    make_suspect(ledger)
    busy = {"w8": ledger.attempts("w8"), "w9": ledger.attempts("w9")}
    assert all(busy.values())
    ledger.goodbye("w8")
    ledger.result("w9", *ledger.attempts("w9")[0])
    ledger.result("w9", *ledger.attempts("w9")[1])
    assert ledger.attempts("w9")[-1][0] == "r1"


@pytest.mark.parametrize("how", ["silent", "drained"])
def test_another_worker_is_emptied_if_the_first_one_takes_nothing(ledger: Driver, how: str) -> None:
    make_suspect(ledger)
    first = ledger.attempts("w9")[:]
    if how == "drained":
        ledger.credit("w8", 0)
    else:
        ledger.beat(RULES.lease_s + 1, w9=first)
    for held in first:
        ledger.result("w9", *held)
    assert ledger.attempts("w9")[-1][0] == "r1"


def test_cancelling_a_suspect_gives_the_emptied_worker_back(ledger: Driver) -> None:
    leased(ledger, "r1", slots=1)
    ledger.lost("w1")
    ledger.worker("w2", slots=1)
    ledger.submit("r2", "r3", group="second")
    ledger.worker("w3", slots=1)
    ledger.lost("w2")
    ledger.credit("w3", 2)
    assert len(ledger.attempts("w3")) == 1
    ledger.cancel("r1")
    assert len(ledger.attempts("w3")) == 2
