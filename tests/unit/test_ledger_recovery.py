"""The ledger from its entries: after a crash with all, or only a part, of them durable."""

import pytest

from engine.errors import JournalError
from engine.ledger import Deliver, Dispatch, Ended, FreeBody, Keep, Rewound, StageDone
from engine.ledger.attempts import MOST_LOSSES
from engine.ledger.recovery import Recovery
from engine.messages import WorkerWelcome
from engine.records import StageTiming

from ..ledger_kit import RULES, Driver


def pinned(ledger: Driver) -> None:
    """Bring r1 to its second stage, bound to host a."""
    ledger.client()
    ledger.submit("r1", size_bytes=10)
    ledger.worker("w1")
    ledger.result("w1", "r1", 1, pinned=True, size_bytes=90)


def lose_host(ledger: Driver) -> None:
    ledger.lost("w1")
    ledger.tick()
    ledger.tick(RULES.lease_s + 1)


def test_nothing_starts_until_every_worker_known_has_said_hello(ledger: Driver) -> None:
    ledger.client()
    ledger.worker("w1", slots=1)
    ledger.worker("w2", slots=1)
    ledger.submit("r1", "r2", "r3")
    ledger.restart()
    ledger.worker("w1", held=[("r1", 1)])
    assert not ledger.only(Dispatch)
    ledger.worker("w2", held=[("r2", 1)])
    assert [work.rollout_id for work in ledger.only(Dispatch)] == ["r3"]


def test_a_worker_that_does_not_return_is_awaited_for_a_lease(ledger: Driver) -> None:
    ledger.client()
    ledger.worker("w1")
    ledger.submit("r1")
    ledger.restart()
    ledger.worker("w2")
    ledger.beat(RULES.lease_s - 1, w2=[])
    assert not ledger.attempts("w2")
    ledger.beat(1, w2=[])
    assert ledger.attempts("w2") == [("r1", 1)]


def test_workers_still_awaited_are_awaited_after_another_crash_too(ledger: Driver) -> None:
    ledger.client()
    ledger.worker("w1")
    ledger.worker("w2")
    ledger.submit("r1", "r2")
    ledger.restart()
    ledger.worker("w1", held=[("r1", 1)])
    ledger.restart()
    ledger.worker("w1", held=[("r1", 1)])
    assert not ledger.only(Dispatch)
    ledger.worker("w2", held=[("r2", 1)])
    assert not ledger.told(WorkerWelcome)[0].drop


def test_a_ledger_without_workers_before_starts_at_once(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.restart()
    ledger.worker("w1")
    assert ledger.only(Dispatch)


def test_a_stage_that_is_committed_is_not_run_again(ledger: Driver) -> None:
    pinned(ledger)
    ledger.restart()
    ledger.worker("w1")
    ledger.worker("w2", "run")
    assert [(work.stage, work.attempt) for work in ledger.only(Dispatch)] == [(1, 2)]


def test_a_pin_survives_a_crash(ledger: Driver) -> None:
    pinned(ledger)
    ledger.restart()
    ledger.worker("w1")
    ledger.worker("w2", "run", host="b")
    assert not ledger.only(Dispatch)


def test_failures_are_counted_across_a_crash(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    for attempt in range(1, 4):
        ledger.restart()
        ledger.client()
        ledger.worker("w1")
        ledger.result("w1", "r1", attempt, "failed")
    assert ledger.only(Deliver)[0].result.outcome == "failed"


def test_a_suspect_is_one_after_a_crash_too(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", "r2")
    for number in (1, 2):
        ledger.worker(f"w{number}")
        ledger.lost(f"w{number}")
    ledger.restart()
    ledger.worker("w3")
    assert len(ledger.attempts("w3")) == 1


def test_results_are_delivered_again_with_their_numbers(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", "r2", "r3")
    ledger.cancel("r2", "r1", "r3")
    ledger.ack((1, 1))
    ledger.restart()
    ledger.client()
    again = [(delivery.result.seq, delivery.result.rollout_id) for delivery in ledger.only(Deliver)]
    assert again == [(2, "r1"), (3, "r3")]


@pytest.mark.parametrize("final", [True, False])
def test_an_end_lost_between_two_rows_is_made_up_for(ledger: Driver, final: bool) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.worker("w1")
    if not final:
        for number, stage in enumerate(("init", "run"), 1):
            ledger.worker(f"w{number}", stage)
            ledger.result(f"w{number}", "r1", number)
        ledger.worker("w1", "eval")
        ledger.worker("w3", "eval")
    name, attempt = ("w1", 1) if final else ("w3", 3)
    ledger.result(name, "r1", attempt, reward=1.0, final=final)
    done = next(
        position
        for position, change in enumerate(ledger.journal.changes)
        if isinstance(change, Keep) and isinstance(change.entry, Ended)
    )
    del ledger.journal.changes[done:]
    ledger.restart()
    ledger.client()
    assert ledger.entries(Ended)
    assert [delivery.result.reward for delivery in ledger.only(Deliver)] == [1.0]


def test_the_journal_of_another_pipeline_is_refused() -> None:
    recovery = Recovery(RULES, "broker-1", 0.0)
    ledger = Driver()
    pinned(ledger)
    submitted = next(c for c in ledger.journal.changes if isinstance(c, Keep))
    recovery.entry(submitted.order, submitted.entry)
    timing = StageTiming("fly", 1, "n", 0.0, 0.0, 0.0)
    nothing = (None, None, None, None, 0, 0, 0.0)
    entry = StageDone("fly", 1, "w", "a", False, False, *nothing, timing, 0)
    with pytest.raises(JournalError, match="fly"):
        recovery.entry(submitted.order + 1, entry)


def test_a_rollout_whose_host_is_lost_starts_again(ledger: Driver) -> None:
    pinned(ledger)
    lose_host(ledger)
    kept = [keep for keep in ledger.only(Keep) if isinstance(keep.entry, Rewound)]
    assert [keep.order for keep in kept] == [2]
    assert ledger.only(FreeBody) == [FreeBody(2)]
    ledger.worker("w2", host="b")
    assert [(work.stage, work.attempt) for work in ledger.only(Dispatch)] == [(0, 2)]
    assert ledger.ledger.status(ledger.now)["bounds"]["bytes"] == [10, RULES.bytes]


def test_a_rollout_whose_pin_is_gone_begins_again_and_its_attempts_count_anew(
    ledger: Driver,
) -> None:
    pinned(ledger)
    ledger.worker("w2", "run")
    ledger.result("w2", "r1", 2, "lost")
    kept = [keep.entry for keep in ledger.only(Keep)]
    assert Rewound(lost=True) in kept
    assert ledger.only(FreeBody) == [FreeBody(2)]
    assert [(work.stage, work.attempt) for work in ledger.only(Dispatch)] == [(0, 3)]
    rollout = ledger.ledger._books.rollouts["r1"]
    assert (rollout.failed, rollout.losses, rollout.host) == (0, 1, "")


def test_a_rollout_that_loses_its_pin_again_and_again_fails_even_after_a_restart(
    ledger: Driver,
) -> None:
    pinned(ledger)
    for loss in range(MOST_LOSSES + 1):
        ledger.worker("w1")
        ledger.worker("w2", "run")
        ledger.result("w2", "r1", 2 * loss + 2, "lost")
        assert ledger.state("r1") in {"ready", "leased"} or loss == MOST_LOSSES
        if loss == 1:
            ledger.restart()
            ledger.worker("w1")
            ledger.worker("w2", "run")
        if loss < MOST_LOSSES:
            ledger.result("w1", "r1", 2 * loss + 3, pinned=True)
    assert ledger.state("r1") == "delayed"
    assert ledger.ledger._books.rollouts["r1"].failed == 1


def test_a_lost_result_of_what_was_not_pinned_is_a_failure(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.worker("w1")
    ledger.result("w1", "r1", 1, "lost")
    assert ledger.state("r1") == "delayed"


def test_a_host_is_lost_only_after_a_lease(ledger: Driver) -> None:
    pinned(ledger)
    ledger.lost("w1")
    ledger.tick()
    ledger.tick(RULES.lease_s - 0.1)
    ledger.worker("w2", "run")
    assert ledger.only(Dispatch)


def test_a_lost_hosts_result_of_a_voided_stage_is_not_taken(ledger: Driver) -> None:
    pinned(ledger)
    lose_host(ledger)
    ledger.result("w1", "r1", 1)
    assert not ledger.only(Keep)


def test_a_rollout_starts_again_after_every_attempt_that_was_heard_of(ledger: Driver) -> None:
    pinned(ledger)
    ledger.result("w1", "r1", 5, "failed", stage="run")
    lose_host(ledger)
    ledger.worker("w2", host="b")
    assert [work.attempt for work in ledger.only(Dispatch)] == [6]


def test_a_pinned_rollout_is_not_adopted_on_another_host(ledger: Driver) -> None:
    pinned(ledger)
    ledger.restart()
    ledger.worker("w2", "run", host="b", held=[("r1", 2)])
    assert ledger.told(WorkerWelcome)[0].drop == (("r1", 2),)
    assert ledger.state("r1") == "ready"


def test_a_voided_checkpoint_stays_void_after_a_crash(ledger: Driver) -> None:
    pinned(ledger)
    lose_host(ledger)
    ledger.restart()
    ledger.worker("w2", host="b")
    ledger.tick(RULES.lease_s)
    assert [work.stage for work in ledger.dispatched][-1] == 0


def test_a_rollout_in_a_stage_without_its_host_is_cancelled_like_any(ledger: Driver) -> None:
    pinned(ledger)
    ledger.lost("w1")
    ledger.cancel("r1")
    assert ledger.only(Deliver)[0].result.outcome == "cancelled"
