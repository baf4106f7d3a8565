"""What the status says of a ledger whose history is known."""

from typing import Any

from engine.ledger import FromWorker
from engine.messages import Heartbeat

from ..ledger_kit import RULES, Driver


def stage(driver: Driver, name: str) -> dict[str, Any]:
    stages: Any = driver.ledger.status(driver.now)["stages"]
    return next(each for each in stages if each["stage"] == name)


def waits(driver: Driver) -> dict[str, dict[str, Any]]:
    found: Any = driver.ledger.status(driver.now)["waits"]
    return {wait["rollout_id"]: wait for wait in found}


def started(slots: int = 2) -> Driver:
    driver = Driver()
    driver.client()
    driver.worker("w", "init", slots=slots)
    driver.submit("a", "b", "c", "d")
    return driver


def test_a_stage_tells_its_queue_its_credit_and_its_counters() -> None:
    driver = started()
    driver.now += 3.0
    driver.heartbeat("w", ("a", 1), ("b", 1))
    found = stage(driver, "init")
    assert (found["ready"], found["leased"], found["queued"]) == (2, 2, {"any": 2})
    assert (found["slots"], found["slots_free"], found["credit_bytes"]) == (2, 0, 10_000)
    assert (found["queued_bytes"], found["used_bytes"]) == (20, 20)
    assert (found["dispatched"], found["done"], found["oldest_s"]) == (2, 0, 3.0)
    driver.result("w", "a", 1)
    found = stage(driver, "init")
    assert (found["dispatched"], found["done"]) == (3, 1)
    assert sum(found["duration"]["counts"]) == 1
    assert found["duration"]["sum_s"] == 3.0
    assert found["queue_wait"]["sum_s"] == 3.0


def test_delayed_and_stopping_rollouts_are_counted_until_they_are_over() -> None:
    driver = started()
    driver.result("w", "a", 1, "failed")
    driver.cancel("b")
    found = stage(driver, "init")
    assert (found["delayed"], found["stopping"], found["failed"]) == (1, 1, 1)
    driver.result("w", "b", 1, "cancelled")
    driver.tick(RULES.retry_delay_s)
    found = stage(driver, "init")
    assert (found["delayed"], found["stopping"]) == (0, 0)


def test_the_first_stage_waits_within_the_broker_s_own_bound() -> None:
    driver = started()
    bounds = [each["bound"] for each in driver.ledger.status(driver.now)["stages"]]  # type: ignore[attr-defined]
    assert bounds == [RULES.rollouts, 4, 4]


def test_every_wait_names_what_it_is_for_and_who_owns_it() -> None:
    driver = started()
    driver.result("w", "a", 1, "failed")
    driver.cancel("b")
    found = waits(driver)
    assert found["c"]["waits_for"] == "the result of attempt 1"
    assert found["c"]["owner"] == "node-w on a"
    assert found["b"]["waits_for"] == "attempt 1 to stop"
    assert (found["a"]["waits_for"], found["a"]["owner"]) == (
        "its next attempt after 1 failed",
        "broker",
    )
    assert found["d"]["waits_for"] == "credit: 2 of 2 slots of init leased"
    driver.goodbye("w")
    assert waits(driver)["d"]["waits_for"] == "a worker of init: there is none"


def test_a_result_waits_for_its_client() -> None:
    driver = started()
    driver.client(window=1)
    driver.cancel("c", "d")
    found = waits(driver)
    assert found["c"]["waits_for"] == "its acknowledgement"
    assert found["d"]["waits_for"] == "room in its client's window"
    assert found["c"]["owner"] == "trainer"
    driver.leave()
    assert waits(driver)["c"]["waits_for"] == "its client to come back"


def test_a_worker_s_stalled_loop_names_the_rollout_whose_code_runs() -> None:
    driver = started()
    driver.now += 2.0
    held = (("a", 1), ("b", 1))
    driver.handle(FromWorker(Heartbeat("w", held, 1.5, 1.5, "b")))
    workers: Any = driver.ledger.status(driver.now)["workers"]
    assert workers[0]["culprit"] == {"rollout_id": "b", "attempt": 1, "leased_s": 2.0}
    assert workers[0]["lag_s"] == 1.5
    assert waits(driver)["c"]["waits_for"] == "a worker of init that answers"


def test_a_rollout_is_described_with_its_history_and_an_unknown_one_is_null() -> None:
    driver = started()
    driver.now += 1.0
    driver.result("w", "a", 1, "failed")
    told: Any = driver.ledger.status(driver.now, "a")["rollout"]
    assert (told["state"], told["stage"], told["failed"]) == ("delayed", "init", 1)
    assert told["failures"][0]["error"] == "SandboxError"
    assert [what.split()[0] for _, what in told["history"]] == ["dispatch", "delay"]
    assert driver.ledger.status(driver.now, "nobody")["rollout"] is None
    assert "rollout" not in driver.ledger.status(driver.now)


def test_the_longest_waits_come_first_and_are_bounded() -> None:
    driver = Driver()
    for number in range(8):
        driver.client(f"trainer-{number}")
        driver.submit(*(f"r-{number}-{n}" for n in range(8)), client=f"trainer-{number}")
        driver.now += 1.0
    ages = [wait["since_s"] for wait in driver.ledger.status(driver.now)["waits"]]  # type: ignore[attr-defined]
    assert len(ages) == 4
    assert ages == sorted(ages, reverse=True)
    assert ages[0] == 8.0
