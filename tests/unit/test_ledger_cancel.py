"""Cancels and their receipts."""

import pytest

from engine.ledger import Deliver, StopAttempts, Tell
from engine.messages import Cancelled, HeartbeatReply, Result
from engine.records import Receipt, Usage

from ..ledger_kit import RULES, Driver

SPENT = Usage(2, 30, 4.0)


def started(ledger: Driver, *names: str) -> None:
    ledger.client()
    ledger.submit(*names)
    ledger.worker("w1", slots=2)


def results(ledger: Driver) -> list[Result]:
    return [delivery.result for delivery in ledger.only(Deliver)]


def test_a_rollout_that_has_not_begun_is_cancelled_at_once(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.cancel("r1")
    receipt = Receipt("r1", "", running=False, usage=Usage())
    assert ledger.told(Cancelled) == [Cancelled("cancel", (receipt,), (), ())]
    assert (results(ledger)[0].outcome, results(ledger)[0].receipt) == ("cancelled", receipt)
    assert results(ledger)[0].reward is None


def test_one_answer_names_every_rollout_that_a_cancel_ended(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", "r2", "r3")
    ledger.cancel("r1", "r2", "r3")
    (answer,) = ledger.told(Cancelled)
    assert [receipt.rollout_id for receipt in answer.receipts] == ["r1", "r2", "r3"]


def test_a_running_rollout_is_stopped_and_its_receipt_says_what_it_spent(ledger: Driver) -> None:
    started(ledger, "r1")
    ledger.cancel("r1")
    assert ledger.only(StopAttempts) == [StopAttempts((("r1", 1),))]
    assert not ledger.told(Cancelled)
    ledger.heartbeat("w1", ("r1", 1))
    assert ledger.told(HeartbeatReply)[0].drop == (("r1", 1),)
    ledger.result("w1", "r1", 1, "cancelled", usage=SPENT)
    receipt = Receipt("r1", "init", running=True, usage=SPENT)
    assert ledger.told(Cancelled)[0].receipts == (receipt,)


def test_an_answer_waits_for_the_last_worker_to_stop(ledger: Driver) -> None:
    started(ledger, "r1", "r2", "r3")
    ledger.cancel("r1", "r2", "r3")
    ledger.result("w1", "r1", 1, "cancelled")
    assert not ledger.told(Cancelled)
    ledger.result("w1", "r2", 1, "cancelled")
    assert len(ledger.told(Cancelled)[0].receipts) == 3


def test_a_result_that_crosses_a_cancel_does_not_complete_the_rollout(ledger: Driver) -> None:
    started(ledger, "r1")
    ledger.cancel("r1")
    ledger.result("w1", "r1", 1, reward=1.0, final=True)
    assert results(ledger)[0].outcome == "cancelled"
    assert results(ledger)[0].reward is None


def test_two_cancels_of_one_rollout_are_both_answered(ledger: Driver) -> None:
    started(ledger, "r1")
    ledger.cancel("r1", cancel_id="c1")
    ledger.cancel("r1", cancel_id="c2")
    ledger.result("w1", "r1", 1, "cancelled")
    assert {answer.cancel_id for answer in ledger.told(Cancelled)} == {"c1", "c2"}


def test_another_client_may_cancel_and_is_answered_while_the_owner_has_the_result(
    ledger: Driver,
) -> None:
    started(ledger, "r1", "r2")
    ledger.client("operator")
    ledger.cancel("r1", client="operator")
    assert [answer.unknown for answer in ledger.told(Cancelled)] == [("r1",)]
    ledger.cancel("r1", client="operator", client_id="trainer")
    ledger.result("w1", "r1", 1, "cancelled")
    (tell,) = (tell for tell in ledger.only(Tell) if isinstance(tell.message, Cancelled))
    assert tell.client_id == "operator"
    assert [receipt.rollout_id for receipt in tell.message.receipts] == ["r1"]
    assert [result.outcome for result in results(ledger)] == ["cancelled"]


def test_a_repeated_cancel_has_one_answer_and_one_receipt(ledger: Driver) -> None:
    started(ledger, "r1", "r2")
    ledger.cancel("r1", "r2")
    ledger.cancel("r1", "r2")
    ledger.result("w1", "r1", 1, "cancelled")
    ledger.result("w1", "r2", 1, "cancelled")
    (answer,) = ledger.told(Cancelled)
    assert len(answer.receipts) == 2


def test_a_rollout_that_has_ended_is_named_without_a_receipt(ledger: Driver) -> None:
    started(ledger, "r1")
    ledger.result("w1", "r1", 1, reward=1.0, final=True)
    ledger.cancel("r1")
    assert ledger.told(Cancelled) == [Cancelled("cancel", (), ("r1",), ())]


def test_what_the_client_does_not_have_is_named_as_unknown(ledger: Driver) -> None:
    ledger.client()
    ledger.client("other")
    ledger.submit("r1", client="other")
    ledger.cancel("r1", "r9", group_ids=("g9",))
    assert ledger.told(Cancelled)[0].unknown == ("r1", "r9", "g9")
    assert ledger.state("r1") == "ready"


def test_a_stranger_has_nothing_to_cancel(ledger: Driver) -> None:
    ledger.cancel("r1", client="stranger")
    assert ledger.told(Cancelled)[0].unknown == ("r1",)


def test_a_group_is_cancelled_with_all_its_submits(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", "r2", group="g1")
    ledger.submit("r3", group="g1")
    ledger.submit("r4", group="g2")
    ledger.cancel(group_ids=("g1",))
    assert [receipt.rollout_id for receipt in ledger.told(Cancelled)[0].receipts] == [
        "r1",
        "r2",
        "r3",
    ]
    assert ledger.state("r4") == "ready"


def test_everything_is_everything_of_this_client(ledger: Driver) -> None:
    ledger.client("other")
    ledger.submit("x1", client="other")
    started(ledger, "r1", "r2", "r3")
    ledger.cancel(everything=True)
    ledger.lost("w1")
    assert len(ledger.told(Cancelled)[0].receipts) == 3
    assert ledger.state("x1") == "ready"


def test_nothing_to_cancel_is_answered_at_once(ledger: Driver) -> None:
    ledger.client()
    ledger.cancel(everything=True)
    assert ledger.told(Cancelled) == [Cancelled("cancel", (), (), ())]


@pytest.mark.parametrize("how", ["lost", "goodbye", "silent"])
def test_a_worker_that_goes_while_stopping_ends_the_cancel(ledger: Driver, how: str) -> None:
    started(ledger, "r1")
    ledger.cancel("r1")
    if how == "silent":
        ledger.tick(RULES.lease_s)
    else:
        getattr(ledger, how)("w1")
    assert ledger.told(Cancelled)[0].receipts[0].running
    assert results(ledger)[0].failures == ()


def test_heartbeats_do_not_keep_a_stopping_attempt_alive(ledger: Driver) -> None:
    started(ledger, "r1")
    ledger.cancel("r1")
    ledger.beat(RULES.lease_s, w1=[("r1", 1)])
    assert ledger.state("r1") == "ended"


def test_a_rollout_that_waits_after_a_failure_is_cancelled_at_once(ledger: Driver) -> None:
    started(ledger, "r1")
    ledger.result("w1", "r1", 1, "failed")
    ledger.cancel("r1")
    assert ledger.told(Cancelled)[0].receipts[0].stage == "init"
    ledger.tick(10)
    assert ledger.state("r1") == "ended"


def test_a_stopped_attempts_slot_is_free_again(ledger: Driver) -> None:
    started(ledger, "r1", "r2", "r3")
    ledger.cancel("r1")
    assert len(ledger.attempts("w1")) == 2
    ledger.result("w1", "r1", 1, "cancelled")
    assert ledger.attempts("w1")[-1] == ("r3", 1)


def test_a_cancel_survives_a_late_result_of_an_older_attempt(ledger: Driver) -> None:
    started(ledger, "r1")
    ledger.tick(RULES.lease_s + 1)
    ledger.worker("w2")
    ledger.cancel("r1")
    ledger.result("w1", "r1", 1)
    assert ledger.state("r1") == "stopping"
    ledger.result("w2", "r1", 2, "cancelled")
    assert results(ledger)[0].outcome == "cancelled"
