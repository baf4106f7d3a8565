"""Networks that fail for a while: every accepted rollout ends once all the same."""

import subprocess
from collections.abc import Callable

import pytest

from tests.chaos import oracle
from tests.chaos.scene import until

from .cluster import LEASE_S, Cluster, hold
from .conftest import Start

pytestmark = pytest.mark.netns

PATIENCE_S = 180.0


def judged(cluster: Cluster, trainer: "subprocess.Popen[bytes]", rollouts: int) -> oracle.Verdict:
    cluster.finish(trainer, PATIENCE_S)
    verdict = oracle.judge(cluster.logs)
    assert not verdict.problems, verdict
    assert verdict.counts["completed"] == rollouts, verdict
    return verdict


def test_hosts_that_are_cut_off_for_less_and_for_more_than_a_lease_lose_nothing(
    start: Start,
) -> None:
    cluster = start()
    net = cluster.net
    rollouts = 400
    trainer = cluster.start_trainer(rollouts, payload={"run_s": 0.8, "eval_s": 0.1})
    faults: tuple[tuple[Callable[[], None], float], ...] = (
        (lambda: net.cut("b"), 1.0),
        (lambda: net.deafen("b", to="a"), 1.0),
        (lambda: net.deafen("a", to="c"), LEASE_S + 1.5),
        (lambda: net.cut("c"), LEASE_S + 1.5),
        (lambda: net.deafen("c", to="a"), LEASE_S + 1.5),
        (lambda: net.cut("t"), 1.0),
    )
    for number, (fail, seconds) in enumerate(faults):
        until(lambda: cluster.progress() >= 8 * number, "progress", PATIENCE_S)  # noqa: B023
        fail()
        hold(seconds)
        net.mend()
        hold(0.5)
    verdict = judged(cluster, trainer, rollouts)
    assert verdict.counts["accepted"] == rollouts


def test_a_host_that_is_cut_off_in_the_middle_of_a_large_result_sends_it_once_whole(
    start: Start,
) -> None:
    cluster = start(
        stages=[
            {"name": "init", "workers": {"a": 1}},
            {"name": "run", "workers": {"c": 1}},
            {"name": "eval", "workers": {"a": 1}},
        ]
    )
    cluster.net.slow("c", kbit=20_000)
    trainer = cluster.start_trainer(
        4, group_size=2, kind="hostkinds.bulky", payload={"mb": 10, "run_s": 0.5}
    )
    until(lambda: cluster.counts.exists() and "run" in cluster.counts.read_text(), "a run")
    hold(2.0)
    cluster.net.cut("c")
    hold(LEASE_S + 1.0)
    cluster.net.mend()
    judged(cluster, trainer, 4)
