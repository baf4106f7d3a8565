"""Pins across machines, hosts that die, and hosts that join and leave."""

import json

import pytest

from tests.chaos.scene import until

from .cluster import LEASE_S, STAGES, TIMES, Cluster, hold
from .conftest import Start

pytestmark = pytest.mark.netns

PATIENCE_S = 180.0
PLACED = [
    {"name": "init", "slots": 8, "workers": {"b": 1, "c": 1}},
    {"name": "run", "slots": 8, "workers": {"b": 1, "c": 1}},
    {"name": "eval", "slots": 8, "workers": {"b": 1, "c": 1}},
]
ROLLOUTS = 16


def leased(cluster: Cluster, stage: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for worker in cluster.status()["workers"]:
        if worker["stage"] == stage:
            found[worker["host"]] = found.get(worker["host"], 0) + worker["leased"]
    return found


def test_a_run_lands_where_its_init_was_and_goes_elsewhere_from_init_on_if_that_host_dies(
    start: Start,
) -> None:
    cluster = start(stages=PLACED)
    gate = cluster.directory / "gate"
    ground = cluster.directory / "ground"
    with cluster.client("trainer") as client:
        task = cluster.task("t", gate=str(gate), ground=str(ground))
        task = type(task)(task.task_id, "hostkinds.placed", task.payload)
        client.submit(task, ROLLOUTS)
        until(lambda: leased(cluster, "run") == {"b": 8, "c": 8}, "both hosts to be full")
        cluster.lose("b")
        until(lambda: leased(cluster, "run").get("b", 0) == 0, "the leases of b to end", PATIENCE_S)
        gate.touch()
        found = list(client.rollouts())
    assert {rollout.outcome for rollout in found} == {"completed"}
    assert {rollout.reward for rollout in found} == {1.0}
    assert len(found) == ROLLOUTS
    networks = {
        json.dumps([stage["network"] for stage in rollout.data.values()]) for rollout in found
    }
    assert len(networks) == 1, "all ended on the host that was left, each wholly there"
    moved = [rollout for rollout in found if rollout.data["init"]["attempt"] > 1]
    assert len(moved) == 8
    assert all(rollout.timings[0].stage == "init" for rollout in found)


def test_a_host_joins_by_apply_and_leaves_again_with_its_work_done(start: Start) -> None:
    only_b = [{**stage, "workers": {"b": 1}} for stage in STAGES]
    cluster = start(stages=only_b)
    gate = cluster.directory / "gate"  # until c is there, b has more than it can take
    trainer = cluster.start_trainer(600, payload={"run_s": 0.4, "gate": str(gate)})
    cluster.write(stages=STAGES)
    said = cluster.rollmq("apply", "topology.yaml", "--dry-run", "--json", host="a").stdout
    assert {change["what"] for change in json.loads(said)["changes"]} == {
        "stages.run.workers.c",
        "stages.eval.workers.c",
    }
    cluster.rollmq("apply", "topology.yaml")
    until(lambda: leased(cluster, "run").get("c"), "work on c", PATIENCE_S)
    gate.touch()
    cluster.write(stages=only_b, timeouts={**TIMES, "retry_delay_s": 0.2})
    cluster.rollmq("apply", "topology.yaml")
    until(lambda: not cluster.named("c"), "c to be empty", PATIENCE_S)
    cluster.finish(trainer, PATIENCE_S)
    assert cluster.progress() == 600


def test_a_broker_whose_host_is_away_for_long_is_waited_for(start: Start) -> None:
    cluster = start()
    workers = cluster.named("b")
    cluster.lose("a")
    hold(LEASE_S + 1.0)
    cluster.start("a")
    cluster.ready("a")
    until(lambda: set(leased(cluster, "run")) == {"b", "c"}, "the workers to be back", PATIENCE_S)
    assert cluster.named("b") == workers, "none was started again for that"
