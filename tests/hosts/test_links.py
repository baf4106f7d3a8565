"""Links that are slow or busy, and many clients that come back at once."""

import signal
import time
from functools import cache
from typing import Any

import pytest

from engine import load
from tests.chaos import oracle
from tests.chaos.scene import hit, until

from .cluster import LEASE_S, Cluster
from .conftest import Start

pytestmark = pytest.mark.netns

CLIENTS = 200
PATIENCE_S = 180.0
BULK = [
    {"name": "init", "workers": {"b": 1}},
    {"name": "run", "slots": 4, "workers": {"c": 1}},
    {"name": "eval", "workers": {"a": 1}},
]


def test_heartbeats_are_not_delayed_by_results_that_fill_a_slow_link(
    start: Start, tell: Any
) -> None:
    cluster = start(stages=BULK)
    cluster.net.slow("c", kbit=16_000)
    trainer = cluster.start_trainer(16, kind="hostkinds.bulky", payload={"mb": 2})
    until(lambda: cluster.progress() > 0, "the first result", PATIENCE_S)
    silences: list[float] = []

    def look(status: dict[str, Any]) -> None:
        silences.extend(each["heard_s"] for each in status["workers"] if each["host"] == "c")

    cluster.watch(8.0, look)
    busy = cluster.progress() < 16
    cluster.finish(trainer, PATIENCE_S)
    verdict = oracle.judge(cluster.logs)
    assert not verdict.problems, verdict
    assert verdict.counts["completed"] == 16
    tell(f"longest silence of a worker behind a full link: {max(silences):.2f} s, lease {LEASE_S}")
    assert busy, "the link was not full for as long as it was watched"
    assert max(silences) < LEASE_S


def test_two_hundred_clients_that_reconnect_at_once_get_what_is_theirs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.client.front.load", cache(load))  # read once, not 200 times
    cluster = start()
    clients = [cluster.client(f"trainer-{number}", window=4) for number in range(CLIENTS)]
    try:
        for number, client in enumerate(clients):
            task = cluster.task(f"t{number}", run_s=1.0)
            client.submit(task, rollout_ids=[f"r{number}"])
        cluster.net.cut("t")
        broker = until(lambda: _broker(cluster), "the broker's process")
        hit(broker, signal.SIGKILL)
        until(lambda: _broker(cluster) not in {None, broker}, "another broker", PATIENCE_S)
        cluster.net.mend()
        began = time.monotonic()
        found = [[each.rollout_id for each in client.rollouts()] for client in clients]
        assert found == [[f"r{number}"] for number in range(CLIENTS)]
        assert time.monotonic() - began < PATIENCE_S
    finally:
        for client in clients:
            client.close()


def _broker(cluster: Cluster) -> int | None:
    return cluster.named("a").get("broker")
