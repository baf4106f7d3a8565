"""Cancels and their receipts."""

from dataclasses import replace

import pytest

from engine.ledger import STATES, Deliver, Dispatch, Settle, StopAttempts, Tell
from engine.ledger.states import State
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


def into(ledger: Driver, state: State) -> None:
    """Bring the rollout r1 into a state, in its first stage or at its end."""
    ledger.client()
    ledger.submit("r1")
    if state == "ready":
        return
    ledger.worker("w1", slots=1)
    if state == "delayed":
        ledger.result("w1", "r1", 1, "failed")
    elif state == "stopping":
        ledger.cancel("r1", cancel_id="first")
    elif state in {"ended", "acked"}:
        ledger.result("w1", "r1", 1, reward=1.0, final=True)
    if state == "acked":
        ledger.ack((1, 1))
    assert ledger.state("r1") == state


# What a cancel does to a rollout in each state: the state after it, where its answer names the
# rollout ("" while there is none), and whether the receipt says that a worker was at it.
DOES: dict[State, tuple[State, str, bool]] = {
    "ready": ("ended", "receipts", False),
    "leased": ("stopping", "", True),
    "delayed": ("ended", "receipts", False),
    "stopping": ("stopping", "", True),
    "ended": ("ended", "ended", False),
    "acked": ("acked", "ended", False),
}


@pytest.mark.parametrize("state", STATES)
def test_a_cancel_has_a_defined_answer_in_every_state(ledger: Driver, state: State) -> None:
    into(ledger, state)
    after, where, was_running = DOES[state]
    ledger.cancel("r1")
    assert ledger.state("r1") == after
    answers = ledger.told(Cancelled)
    if not where:
        assert not answers
        ledger.result("w1", "r1", 1, "cancelled", usage=SPENT)
        answers = [each for each in ledger.told(Cancelled) if each.cancel_id == "cancel"]
        where = "receipts"
    [answer] = answers
    named = [receipt.rollout_id for receipt in answer.receipts]
    assert (named, list(answer.ended)) == ((["r1"], []) if where == "receipts" else ([], ["r1"]))
    assert [receipt.running for receipt in answer.receipts] == [was_running] * len(named)
    assert [receipt.usage for receipt in answer.receipts] == (
        [SPENT if was_running else Usage()] * len(named)
    )


@pytest.mark.parametrize("state", STATES)
def test_whatever_comes_after_the_answer_to_a_cancel_never_completes_the_rollout(
    ledger: Driver, state: State
) -> None:
    into(ledger, state)
    outcome = "completed" if state in {"ended", "acked"} else "cancelled"
    ledger.cancel("r1")
    if ledger.state("r1") == "stopping":
        ledger.result("w1", "r1", 1, "cancelled")
    ledger.worker("w1")
    for attempt in (1, 2):
        ledger.result("w1", "r1", attempt, reward=1.0, final=True)
        assert not ledger.only(Deliver)
        assert ledger.only(Settle), "a worker is told to forget it, whatever it is"
    ledger.tick(10.0)
    assert not ledger.only(Dispatch)
    assert ledger.state("r1") in {"ended", "acked"}
    counts = ledger.ledger._books.counts
    assert [counts[each] for each in ("completed", "cancelled")].count(1) == counts[outcome] == 1


@pytest.mark.parametrize("state", STATES)
def test_a_cancel_repeated_after_its_answer_names_what_had_ended(
    ledger: Driver, state: State
) -> None:
    into(ledger, state)
    ledger.cancel("r1")
    if ledger.state("r1") == "stopping":
        ledger.result("w1", "r1", 1, "cancelled")
    assert ledger.cancel("r1")
    assert ledger.told(Cancelled) == [Cancelled("cancel", (), ("r1",), ())]
    assert not ledger.only(Deliver)


def test_a_repeat_before_the_answer_keeps_the_receipts_that_there_are(ledger: Driver) -> None:
    started(ledger, "r1", "r2")
    ledger.cancel("r1", "r2")
    ledger.result("w1", "r1", 1, "cancelled", usage=SPENT)
    ledger.cancel("r1", "r2")
    assert not ledger.told(Cancelled)
    ledger.result("w1", "r2", 1, "cancelled")
    [answer] = ledger.told(Cancelled)
    assert {receipt.rollout_id: receipt.usage for receipt in answer.receipts} == {
        "r1": SPENT,
        "r2": Usage(),
    }
    assert answer.ended == ()


def test_a_cancel_id_that_waits_takes_further_names_and_is_answered_once(ledger: Driver) -> None:
    started(ledger, "r1", "r2", "r3")
    ledger.cancel("r1", "nobody")
    ledger.cancel("r2", "r3", "nobody")
    assert not ledger.told(Cancelled), "r3 is over, and r1 and r2 are not"
    ledger.result("w1", "r2", 1, "cancelled")
    assert not ledger.told(Cancelled)
    ledger.result("w1", "r1", 1, "cancelled")
    [answer] = ledger.told(Cancelled)
    assert sorted(receipt.rollout_id for receipt in answer.receipts) == ["r1", "r2", "r3"]
    assert answer.unknown == ("nobody",)


def test_names_that_repeat_within_a_cancel_are_answered_once(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", group="g1")
    ledger.cancel("r1", "r1", "r9", "r9", group_ids=("g1", "g1"), everything=True)
    [answer] = ledger.told(Cancelled)
    assert [receipt.rollout_id for receipt in answer.receipts] == ["r1"]
    assert answer.unknown == ("r9",)


def test_a_cancelled_rollout_is_not_started_over_by_a_repeated_submit(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.cancel("r1")
    ledger.submit("r1")
    ledger.worker("w1")
    assert not ledger.only(Dispatch)
    ledger.cancel("r1")
    assert ledger.told(Cancelled)[0].ended == ("r1",)


def test_a_rollout_that_was_forgotten_is_unknown(ledger: Driver) -> None:
    into(ledger, "acked")
    ledger.tick(ledger.rules.retention_s + 1)
    ledger.cancel("r1")
    assert ledger.told(Cancelled) == [Cancelled("cancel", (), (), ("r1",))]


def test_a_failure_while_stopping_is_a_cancel_with_what_it_spent(ledger: Driver) -> None:
    into(ledger, "stopping")
    ledger.result("w1", "r1", 1, "failed", usage=SPENT)
    [answer] = ledger.told(Cancelled)
    assert answer.receipts[0].usage == SPENT
    assert (results(ledger)[0].outcome, results(ledger)[0].failures) == ("cancelled", ())


def test_a_rollout_that_waits_between_stages_is_cancelled_at_once(ledger: Driver) -> None:
    started(ledger, "r1")
    ledger.result("w1", "r1", 1)
    ledger.cancel("r1")
    [answer] = ledger.told(Cancelled)
    assert answer.receipts == (Receipt("r1", "run", running=False, usage=Usage()),)


def test_cleaning_up_may_take_its_grace_before_a_worker_counts_as_gone() -> None:
    ledger = Driver(replace(RULES, cancel_grace_s=10.0))
    into(ledger, "stopping")
    ledger.beat(2 * RULES.heartbeat_s + 9.0, w1=[("r1", 1)])
    assert ledger.state("r1") == "stopping"
    ledger.result("w1", "r1", 1, "cancelled", usage=SPENT)
    assert ledger.told(Cancelled)[0].receipts[0].usage == SPENT


def test_a_cancel_that_a_restart_forgot_is_repeated_and_stops_what_was_adopted(
    ledger: Driver,
) -> None:
    into(ledger, "stopping")
    ledger.restart()
    ledger.client()
    ledger.worker("w1", held=(("r1", 1),))
    assert ledger.state("r1") == "leased"
    ledger.cancel("r1", cancel_id="first")
    assert ledger.only(StopAttempts) == [StopAttempts((("r1", 1),))]
    ledger.result("w1", "r1", 1, "cancelled", usage=SPENT)
    assert ledger.told(Cancelled)[0].receipts == (Receipt("r1", "init", running=True, usage=SPENT),)
