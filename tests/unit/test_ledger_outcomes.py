"""What a result says: outcome, reward, whether to train on it, and where the time went."""

import pytest

from engine.ledger import Deliver, Ended, Keep
from engine.messages import Result

from ..ledger_kit import Driver


def final(ledger: Driver, **fields: object) -> Result:
    """End r1 in its first stage with these fields."""
    ledger.client()
    ledger.submit("r1")
    ledger.worker("w1")
    ledger.now += 2.0
    ledger.result("w1", "r1", 1, final=True, **fields)
    return ledger.only(Deliver)[0].result


@pytest.mark.parametrize(
    ("fields", "outcome", "reward", "trainable"),
    [
        ({"reward": 0.5}, "completed", 0.5, True),
        ({}, "completed", None, False),
        ({"reward": 0.5, "trainable": False}, "completed", 0.5, False),
        ({"outcome": "truncated", "reward": 0.2}, "truncated", 0.2, True),
        ({"outcome": "agent_timeout"}, "agent_timeout", 0.0, True),
    ],
)
def test_an_outcome_sets_reward_and_trainable(
    ledger: Driver, fields: dict[str, object], outcome: str, reward: float, trainable: bool
) -> None:
    result = final(ledger, **fields)
    assert (result.outcome, result.reward, result.trainable) == (outcome, reward, trainable)


def test_a_result_says_where_the_time_went(ledger: Driver) -> None:
    result = final(ledger, reward=1.0)
    (timing,) = result.timings
    assert (timing.stage, timing.node, timing.lease_s) == ("init", "node-w1", 2.0)
    assert result.total_s == 2.0


def test_what_an_early_stage_found_holds_to_the_end(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.worker("w1")
    ledger.result("w1", "r1", 1, outcome="truncated", rewards={"format": 1.0})
    ledger.worker("w2", "run")
    ledger.result("w2", "r1", 2)
    ledger.worker("w3", "eval")
    ledger.result("w3", "r1", 3, reward=0.7)
    result = ledger.only(Deliver)[0].result
    assert (result.outcome, result.reward, result.rewards) == ("truncated", 0.7, {"format": 1.0})


def test_a_reward_found_before_the_infrastructure_failed_is_not_told(ledger: Driver) -> None:
    ledger.client()
    ledger.submit("r1")
    ledger.worker("w1")
    ledger.result("w1", "r1", 1, reward=0.5, rewards={"format": 1.0})
    ledger.worker("w2", "run")
    ledger.result("w2", "r1", 2, "failed", retry=False)
    result = ledger.only(Deliver)[0].result
    assert (result.outcome, result.reward, result.rewards) == ("failed", None, {})


def test_an_end_is_kept_as_it_will_be_told(ledger: Driver) -> None:
    result = final(ledger, reward=1.0)
    assert ledger.entries(Ended) == [Ended(result)]
    assert [keep.body for keep in ledger.only(Keep)] == [False, False]
