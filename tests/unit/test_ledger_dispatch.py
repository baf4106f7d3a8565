"""Who gets which rollout, and when: fairness, priority, credit, bounds."""

from engine.ledger import Dispatch, Settle

from ..ledger_kit import Driver


def given(ledger: Driver, worker_id: str = "w1") -> list[str]:
    return [name for name, _ in ledger.attempts(worker_id)]


def test_clients_take_turns(ledger: Driver) -> None:
    ledger.client("one")
    ledger.client("two")
    ledger.submit("a1", "a2", "a3", client="one", group="first")
    ledger.submit("b1", "b2", client="two", group="other")
    ledger.worker("w1", slots=5)
    assert given(ledger) == ["a1", "b1", "a2", "b2"]


def test_a_clients_higher_priority_goes_first(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("low", group="g1")
    ledger.submit("high", group="g2", priority=5)
    ledger.worker("w1", slots=5)
    assert given(ledger) == ["high", "low"]


def test_groups_stay_together_and_the_oldest_goes_first(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("a1", "a2", group="a")
    ledger.submit("b1", "b2", group="b")
    ledger.worker("w1", slots=5)
    assert given(ledger) == ["a1", "a2", "b1", "b2"]


def test_a_rollout_that_comes_back_keeps_its_age(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", "r2", "r3")
    ledger.worker("w1", "init", slots=1)
    ledger.result("w1", "r1", 1, "released")
    assert given(ledger) == ["r1", "r1"]


def test_the_least_loaded_worker_is_given_the_next_rollout(ledger: Driver) -> None:
    ledger.worker("w1", slots=4)
    ledger.worker("w2", slots=2)
    ledger.client()
    ledger.submit("r1", "r2")
    assert (len(given(ledger, "w1")), len(given(ledger, "w2"))) == (1, 1)


def test_a_worker_never_holds_more_than_its_slots(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", "r2")
    ledger.worker("w1", slots=1)
    assert given(ledger) == ["r1"]
    ledger.credit("w1", 2)
    assert given(ledger) == ["r1", "r2"]


def test_a_worker_without_slots_is_given_nothing(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.worker("w1", slots=0)
    assert given(ledger) == []


def test_bytes_bound_what_a_worker_holds(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", "r2", size_bytes=600)
    ledger.worker("w1", slots=2, size_bytes=1000)
    assert given(ledger) == ["r1"]
    ledger.result("w1", "r1", 1)
    assert given(ledger) == ["r1", "r2"]


def test_a_rollout_larger_than_the_credit_runs_when_the_worker_is_empty(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", "r2", size_bytes=600)
    ledger.worker("w1", slots=2, size_bytes=100)
    assert given(ledger) == ["r1"]


def test_what_earlier_stages_left_counts_as_input(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", "r2")
    ledger.worker("w1")
    ledger.result("w1", "r1", 1, size_bytes=900)
    ledger.result("w1", "r2", 1, size_bytes=900)
    ledger.worker("w2", "run", slots=2, size_bytes=1000)
    assert given(ledger, "w2") == ["r1"]


def test_a_stage_admits_only_what_the_next_one_has_room_for(ledger: Driver) -> None:
    ledger.client()
    ledger.submit(*(f"r{number}" for number in range(8)))
    ledger.worker("w1", slots=8)
    assert given(ledger) == ["r0", "r1", "r2", "r3"]
    for number in range(4):
        ledger.result("w1", f"r{number}", 1)
    assert len(given(ledger)) == 4
    ledger.worker("w2", "run", slots=1)
    assert len(given(ledger)) == 5


def test_room_in_the_next_stage_is_counted_for_each_host(ledger: Driver) -> None:
    ledger.client()
    ledger.submit(*(f"r{number}" for number in range(12)))
    ledger.worker("w1", slots=8)
    ledger.worker("w2", slots=8, host="b")
    assert (len(given(ledger, "w1")), len(given(ledger, "w2"))) == (4, 4)


def test_cancelling_what_fills_the_next_stage_makes_room_at_once(ledger: Driver) -> None:
    ledger.client()
    ledger.submit(*(f"r{number}" for number in range(5)))
    ledger.worker("w1", slots=8)
    for number in range(4):
        ledger.result("w1", f"r{number}", 1)
    assert len(given(ledger)) == 4
    ledger.cancel("r0")
    assert given(ledger)[-1] == "r4"


def test_a_pinned_rollout_goes_to_its_host_only(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.worker("w1", host="a")
    ledger.result("w1", "r1", 1, pinned=True)
    ledger.worker("w2", "run", host="b")
    assert given(ledger, "w2") == []
    ledger.worker("w3", "run", host="a")
    assert given(ledger, "w3") == ["r1"]


def test_a_result_is_kept_then_settled_then_the_next_stage_starts(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.worker("w2", "run")
    ledger.worker("w1")
    kept, settled, started = ledger.result("w1", "r1", 1, size_bytes=5)
    assert kept.body
    assert settled == Settle("w1", "r1", 1)
    assert isinstance(started, Dispatch)
    assert (started.worker_id, started.stage, started.attempt) == ("w2", 1, 2)
