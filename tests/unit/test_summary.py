"""What a run amounts to."""

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from engine.records import Failure, StageTiming
from engine.summary import Summary, percentiles
from engine.trajectories import Rollout, Trajectory

PLAIN = Rollout(
    rollout_id="r",
    group_id="g",
    group_size=1,
    task_id="t",
    seq=1,
    outcome="completed",
    reward=1.0,
    rewards={},
    trainable=True,
    trajectory=None,
    data={},
    arrays={},
    failures=(),
    timings=(),
    receipt=None,
    total_s=1.0,
)


def summary(*rollouts: Rollout) -> Summary:
    found = Summary()
    for rollout in rollouts:
        found.add(rollout)
    return found


def report(*rollouts: Rollout, seconds: float = 2.0) -> dict[str, Any]:
    return summary(*rollouts).report(seconds, "out")


def test_outcomes_are_counted_in_their_own_order_and_only_those_that_occurred() -> None:
    outcomes = ("failed", "completed", "failed")
    found = report(*(replace(PLAIN, outcome=outcome) for outcome in outcomes))
    assert found["rollouts"] == 3
    assert list(found["outcomes"].items()) == [("completed", 1), ("failed", 2)]


def test_a_rollout_without_a_reward_does_not_weigh_on_the_mean() -> None:
    rewards = (1.0, None, 0.0)
    assert report(*(replace(PLAIN, reward=reward) for reward in rewards))["reward_mean"] == 0.5


def test_no_reward_at_all_has_no_mean() -> None:
    assert report()["reward_mean"] is None
    assert report(replace(PLAIN, reward=None))["reward_mean"] is None


def test_tokens_are_those_that_the_policy_sampled() -> None:
    trajectory = Trajectory(
        np.zeros(300, dtype=np.int32),
        np.ones(300, dtype=np.uint8),
        np.zeros(300, dtype=np.float32),
    )
    trajectory.loss_mask[:10] = 0
    found = report(replace(PLAIN, trajectory=trajectory), PLAIN)
    assert (found["tokens"], found["tokens_per_s"]) == (290, 145.0)


def test_rates_are_of_this_run_alone_and_counts_of_all_of_it() -> None:
    resumed = summary(PLAIN, PLAIN, PLAIN)
    resumed.begin()
    assert resumed.report(2.0, "out")["rollouts_per_s"] == 0.0
    resumed.add(PLAIN)
    found = resumed.report(2.0, "out")
    assert (found["rollouts"], found["rollouts_per_s"], resumed.fresh) == (4, 0.5, 1)


def test_a_run_of_no_time_has_no_rate() -> None:
    assert report(PLAIN, seconds=0.0)["rollouts_per_s"] == 0.0


def test_times_are_given_for_each_stage() -> None:
    timings = (StageTiming("init", 1, "n", 0.5, 2.0, 1.0), StageTiming("run", 2, "n", 0, 4, 3.0))
    stages = report(replace(PLAIN, timings=timings), PLAIN)["stages"]
    assert list(stages) == ["init", "run"]
    assert stages["init"]["queue_s"] == {"p50": 0.5, "p90": 0.5, "p99": 0.5, "max": 0.5}
    assert stages["run"]["work_s"]["max"] == 3.0


def test_failures_are_counted_by_their_last_cause_for_rollouts_that_failed() -> None:
    first = Failure("run", 1, "backend", "Timeout", "late")
    last = Failure("run", 2, "handler", "KeyError", "'x'")
    failed = replace(PLAIN, outcome="failed", failures=(first, last))
    recovered = replace(PLAIN, failures=(first,))
    assert report(failed, failed, recovered)["failures"] == {"run: handler: KeyError: 'x'": 2}


def test_only_the_most_frequent_failures_are_listed() -> None:
    failures = [Failure("run", 1, "handler", "E", str(number)) for number in range(20)]
    failed = [replace(PLAIN, outcome="failed", failures=(each,)) for each in failures]
    found = report(*failed, failed[-1])["failures"]
    assert (len(found), next(iter(found))) == (10, "run: handler: E: 19")


def test_a_report_is_json() -> None:
    assert orjson.loads(orjson.dumps(report(PLAIN))) == report(PLAIN)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], []),
        ([3.0], [3.0, 3.0, 3.0, 3.0]),
        ([float(n) for n in range(100, -1, -1)], [50.0, 90.0, 99.0, 100.0]),
    ],
)
def test_percentiles_are_values_that_occurred(values: list[float], found: list[float]) -> None:
    assert list(percentiles(values).values()) == found
