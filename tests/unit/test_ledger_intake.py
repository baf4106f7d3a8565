"""Submit, admission, delivery, acknowledgement and retention."""

from dataclasses import replace

import pytest

from engine.ledger import (
    Deliver,
    Dispatch,
    DropTrainer,
    Forget,
    ForgetValue,
    FreeBody,
    FromTrainer,
    Keep,
    KeepValue,
    Submitted,
    Tell,
    Tick,
)
from engine.messages import Accepted, Ack, Credit, Ping, Refusal, Welcome

from ..ledger_kit import RULES, Driver


def seqs(ledger: Driver) -> list[int]:
    return [delivery.result.seq for delivery in ledger.only(Deliver)]


def end_all(ledger: Driver, *names: str) -> None:
    ledger.client()
    ledger.submit(*names)
    for name in names:
        ledger.cancel(name)


def test_a_submit_is_kept_before_it_is_accepted(ledger: Driver) -> None:
    ledger.client()
    kept, told = ledger.submit("r1", "r2")
    assert isinstance(kept, Keep)
    assert kept.body
    assert isinstance(kept.entry, Submitted)
    assert kept.entry.rollout_ids == ("r1", "r2")
    assert told == Tell("trainer", Accepted("submit-1", ()))


def test_the_same_rollouts_again_are_the_same_rollouts(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", "r2")
    assert ledger.submit("r1", "r2") == [Tell("trainer", Accepted("submit-2", ("r1", "r2")))]


def test_only_the_unknown_rollouts_of_a_repeated_submit_are_taken(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.submit("r1", "r2")
    assert ledger.told(Accepted)[0].repeated == ("r1",)
    assert ledger.entries(Submitted)[0].rollout_ids == ("r2",)


def test_a_stranger_must_say_hello_first(ledger: Driver) -> None:
    ledger.submit("r1")
    assert ledger.told(Refusal)[0].code == "hello_first"


@pytest.mark.parametrize(
    ("names", "size_bytes"),
    [(("r1", "r1"), 1), (tuple(f"r{n}" for n in range(17)), 1), (("r1",), 100_001)],
    ids=["an id twice", "over the group's bound", "larger than all room"],
)
def test_a_submit_that_can_never_fit_is_invalid(
    ledger: Driver, names: tuple[str, ...], size_bytes: int
) -> None:
    ledger.client()
    ledger.submit(*names, size_bytes=size_bytes)
    assert ledger.told(Refusal)[0].code == "invalid"
    assert not ledger.only(Keep)


def test_another_clients_rollout_is_a_conflict(ledger: Driver) -> None:
    ledger.client()
    ledger.client("other")
    ledger.submit("r1")
    ledger.submit("r1", client="other")
    assert ledger.told(Refusal)[0].code == "conflict"


def test_a_rollout_in_another_group_is_a_conflict(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.submit("r1", group="second")
    assert ledger.told(Refusal)[0].code == "conflict"


def test_a_full_broker_refuses_and_gives_credit_when_there_is_room() -> None:
    ledger = Driver(replace(RULES, rollouts=2))
    end_all(ledger, "r1", "r2")
    ledger.submit("r3")
    assert ledger.told(Refusal)[0].code == "full"
    ledger.ack((1, 1))
    assert ledger.told(Credit) == [Credit(1, RULES.bytes - 10)]
    ledger.submit("r3")
    assert ledger.told(Accepted)


def test_bytes_that_stages_leave_count_against_admission(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", size_bytes=50_000)
    ledger.worker("w1", size_bytes=100_000)
    ledger.result("w1", "r1", 1, size_bytes=20_000)
    ledger.submit("r2", size_bytes=40_000)
    assert ledger.told(Refusal)[0].code == "full"


def test_results_wait_for_room_in_the_window(ledger: Driver) -> None:
    ledger.client(window=2)
    ledger.submit("r1", "r2", "r3")
    ledger.cancel("r1", "r2", "r3")
    assert seqs(ledger) == [1, 2]
    ledger.ack((1, 1), window=2)
    assert seqs(ledger) == [3]


def test_results_wait_for_room_in_bytes_and_one_has_it_always() -> None:
    ledger = Driver(replace(RULES, client_bytes=1000))
    ledger.client()
    ledger.submit("r1", "r2", "r3")
    ledger.worker("w1", slots=3)
    delivered = []
    for number, size_bytes in enumerate((5000, 600, 600), 1):
        ledger.result("w1", f"r{number}", 1, final=True, size_bytes=size_bytes)
        delivered += seqs(ledger)
    assert delivered == [1]
    ledger.ack((1, 1))
    assert seqs(ledger) == [2]
    ledger.ack((2, 2))
    assert seqs(ledger) == [3]
    ledger.ack((3, 3))
    ledger.ledger.validate()


def test_a_client_that_never_submitted_is_forgotten(ledger: Driver) -> None:
    for number in range(3):
        ledger.client(f"looks-{number}")
        ledger.leave(f"looks-{number}")
    ledger.client("stays")
    ledger.submit("r1", client="stays")
    ledger.leave("stays")
    assert [client["client_id"] for client in ledger.ledger.status(0.0)["clients"]] == ["stays"]


def test_a_result_is_kept_before_it_is_delivered(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.cancel("r1")
    kinds = [type(instruction) for instruction in ledger.last]
    assert kinds.index(Keep) < kinds.index(Deliver)


def test_everything_unacknowledged_is_delivered_again_after_hello(ledger: Driver) -> None:
    end_all(ledger, "r1", "r2", "r3")
    ledger.ack((2, 2))
    ledger.client(window=8)
    assert ledger.told(Welcome)[0].unacked == 2
    assert seqs(ledger) == [1, 3]


def test_results_wait_while_the_client_is_away(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.leave()
    ledger.cancel("r1")
    assert not seqs(ledger)
    ledger.client()
    assert seqs(ledger) == [1]


def test_a_result_is_acknowledged_once_only(ledger: Driver) -> None:
    end_all(ledger, "r1")
    ledger.ack((1, 1))
    assert len(ledger.only(FreeBody)) == 2
    assert ledger.ack((1, 1)) == []


def test_an_acknowledgement_of_a_result_that_waits_again_is_taken(ledger: Driver) -> None:
    end_all(ledger, "r1", "r2", "r3")
    ledger.client(window=1)
    ledger.ack((1, 3), window=1)
    assert not seqs(ledger)
    assert ledger.state("r3") == "acked"


def test_an_acknowledgement_out_of_all_bounds_is_harmless(ledger: Driver) -> None:
    end_all(ledger, "r1")
    ledger.ack((0, 2**62))
    assert ledger.state("r1") == "acked"


def test_a_tasks_body_is_freed_with_the_last_of_its_rollouts(ledger: Driver) -> None:
    end_all(ledger, "r1", "r2")
    ledger.ack((1, 1))
    assert [free.order for free in ledger.only(FreeBody)] == [2]
    ledger.ack((2, 2))
    assert [free.order for free in ledger.only(FreeBody)] == [3, 1]


def test_an_acknowledged_rollout_is_known_until_its_retention_is_over(ledger: Driver) -> None:
    end_all(ledger, "r1")
    ledger.ack((1, 1))
    ledger.tick(RULES.retention_s)
    ledger.submit("r1")
    assert ledger.told(Accepted)[0].repeated == ("r1",)
    ledger.tick(1.0)
    assert set(ledger.only(Forget)[0].orders) == {1, 2}
    ledger.submit("r1")
    assert ledger.told(Accepted)[0].repeated == ()


def test_numbers_go_on_when_everything_before_is_forgotten(ledger: Driver) -> None:
    end_all(ledger, "r1")
    ledger.ack((1, 1))
    ledger.tick(RULES.retention_s + 1)
    ledger.restart()
    end_all(ledger, "r2")
    assert seqs(ledger) == [2]


def test_a_forgotten_rollout_is_not_revived_by_one_of_the_same_submit(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", "r2")
    ledger.cancel("r1")
    ledger.ack((1, 1))
    ledger.tick(RULES.retention_s + 1)
    ledger.restart()
    ledger.tick(RULES.lease_s)
    ledger.worker("w1")
    assert [work.rollout_id for work in ledger.only(Dispatch)] == ["r2"]


def test_a_client_that_is_owed_nothing_and_silent_is_forgotten(ledger: Driver) -> None:
    end_all(ledger, "r1")
    ledger.ack((1, 1))
    ledger.tick(RULES.retention_s + 1)
    assert ledger.only(Forget)
    assert ledger.only(ForgetValue) == [ForgetValue("client trainer")]
    assert ledger.only(DropTrainer) == [DropTrainer("trainer")]
    assert ledger.ledger.status(ledger.now)["clients"] == []
    kept = [change for change in ledger.journal.changes if isinstance(change, KeepValue)]
    assert {change.key: change.value for change in kept if change.key != "workers"} == {
        "client trainer": 2,
        "first_seq": 2,
    }
    ledger.journal.crash(len(ledger.journal.changes))
    names = {each.key for each in ledger.journal.changes if isinstance(each, KeepValue)}
    assert names - {"workers"} == {"first_seq"}


def test_a_forgotten_client_says_hello_again_and_its_numbers_never_come_twice(
    ledger: Driver,
) -> None:
    end_all(ledger, "r1", "r2")
    ledger.ack((1, 2))
    ledger.tick(RULES.retention_s + 1)
    ledger.submit("r3")
    assert [told.code for told in ledger.told(Refusal)] == ["hello_first"]
    ledger.restart()
    ledger.client()
    assert [told.acked_through for told in ledger.told(Welcome)] == [2]
    ledger.submit("r3")
    ledger.restart()
    ledger.client()
    ledger.cancel("r3")
    assert seqs(ledger) == [3]


@pytest.mark.parametrize("live", ["pings", "is owed a result", "has an id that is remembered"])
def test_a_client_is_kept_while_anything_is_known_of_it(ledger: Driver, live: str) -> None:
    end_all(ledger, "r1")
    ledger.tick(RULES.retention_s - 1)
    if live == "pings":
        ledger.ack((1, 1))
        ledger.tick(RULES.retention_s - 1)
        ledger.handle(FromTrainer("trainer", Ping(1)))
    if live == "has an id that is remembered":
        ledger.ack((1, 1))
    ledger.tick(RULES.retention_s - 1)
    assert [each["client_id"] for each in ledger.ledger.status(ledger.now)["clients"]] == [
        "trainer"
    ]


def test_a_client_whose_cancel_is_not_answered_is_kept() -> None:
    ledger = Driver(replace(RULES, retention_s=0.0))
    ledger.client()
    ledger.submit("r1")
    ledger.worker("w1")
    ledger.client("operator")
    [held] = ledger.attempts("w1")
    ledger.cancel("r1", client="operator", client_id="trainer")
    for _ in range(3):
        ledger.now += RULES.lease_s - 0.5
        ledger.handle(Tick(stood_still=True))
        assert not ledger.only(DropTrainer)
    ledger.result("w1", *held, status="cancelled")
    assert "operator" in [told.client_id for told in ledger.only(Tell)]
    ledger.tick()
    assert ledger.only(DropTrainer) == [DropTrainer("operator")]


def test_what_is_remembered_of_acknowledged_rollouts_is_bounded() -> None:
    ledger = Driver(replace(RULES, rollouts=2))
    for number in range(6):
        end_all(ledger, f"r{number}")
        ledger.ack((number + 1, number + 1))
        ledger.tick()
    assert ledger.ledger.status(ledger.now)["rollouts"] == 2


def test_numbers_begin_where_the_rules_say_and_the_welcome_tells_it() -> None:
    ledger = Driver(replace(RULES, first_seq=1000))
    ledger.client()
    assert [told.message.acked_through for told in ledger.only(Tell)] == [999]
    ledger.submit("r1")
    ledger.cancel("r1")
    assert seqs(ledger) == [1000]


def test_an_acknowledgement_of_every_number_there_can_be_takes_what_is_there(
    ledger: Driver,
) -> None:
    end_all(ledger, "r1", "r2")
    ledger.handle(FromTrainer("trainer", Ack(((0, 2**63 - 1),), 8)))
    assert ledger.ledger.unacked("trainer") == 0
