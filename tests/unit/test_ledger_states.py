"""The table of states, and the report for people."""

import orjson
import pytest

from engine.errors import LedgerError
from engine.ledger import ACTIONS, MEANING, STATES, TRANSITIONS
from engine.ledger.rollouts import LedgerRollout, Submission
from engine.ledger.states import LIVE, RUNNING

from ..ledger_kit import Driver


@pytest.fixture
def rollout() -> LedgerRollout:
    return LedgerRollout(2, "r1", Submission(1, "trainer", "g", "t", "math", 0, 1, 10), 0.0, 0.0)


def test_every_state_can_be_reached_from_ready() -> None:
    reached = {"ready"}
    for _ in STATES:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(STATES)


def test_every_action_is_used_and_explained() -> None:
    assert {action for _, action in TRANSITIONS} == set(ACTIONS) == set(MEANING)


def test_every_live_state_can_end_and_no_other_can() -> None:
    can_end = {before for before, action in TRANSITIONS if action in {"end", "due"}}
    assert can_end == LIVE


def test_only_what_runs_has_a_worker_to_stop_or_release() -> None:
    assert {after for after in TRANSITIONS.values() if after in RUNNING} == RUNNING
    assert RUNNING < LIVE
    starts = {TRANSITIONS[key] for key in TRANSITIONS if key[1] in {"dispatch", "adopt", "stop"}}
    assert starts == RUNNING


def test_nothing_leaves_acked() -> None:
    assert not [key for key in TRANSITIONS if key[0] == "acked"]


def test_an_impossible_step_carries_the_rollouts_history(rollout: LedgerRollout) -> None:
    rollout.step("dispatch", 1.0, "w1")
    rollout.step("stop", 2.0, "cancel c1")
    with pytest.raises(LedgerError, match="r1 is stopping: cannot dispatch") as raised:
        rollout.step("dispatch", 3.0, "w2")
    assert raised.value.history == ("1.000 dispatch w1", "2.000 stop cancel c1")
    assert rollout.state == "stopping"


def test_a_history_is_bounded_and_keeps_what_is_newest(rollout: LedgerRollout) -> None:
    for number in range(100):
        rollout.step("dispatch", float(number), f"w{number}")
        rollout.step("release", float(number), "Left")
    assert len(rollout.history) <= 32
    assert rollout.history[-1] == (99.0, "release Left")


def test_the_status_of_a_busy_ledger_is_json(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1", "r2", "r3", "r4")
    ledger.worker("w1", slots=3)
    ledger.result("w1", "r1", 1, "failed")
    ledger.credit("w1", 2)
    ledger.cancel("r2")
    report = orjson.loads(orjson.dumps(ledger.ledger.status(ledger.now)))
    first = report["stages"][0]
    assert (first["ready"], first["leased"], first["delayed"], first["stopping"]) == (0, 2, 1, 1)
    assert report["workers"][0]["leased"] == 3
    assert report["clients"][0]["delivered"] == 0
    assert report["bounds"]["rollouts"] == [4, 100]


def test_a_ledger_that_waits_for_its_workers_says_so(ledger: Driver) -> None:
    ledger.worker("w1")
    ledger.restart()
    assert ledger.ledger.status(ledger.now)["recovering"]
    ledger.worker("w1")
    assert not ledger.ledger.status(ledger.now)["recovering"]
