"""The default topology.yaml, changed only in its hosts, with sandboxes and inference."""

import json
import shutil
from pathlib import Path

import pytest

from .conftest import Start

pytestmark = pytest.mark.netns

DEFAULT = Path(__file__).parents[2] / "topology.yaml"
GROUP = 2


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="sandboxes need bubblewrap")
def test_the_default_topology_runs_its_examples_on_three_hosts(start: Start) -> None:
    cluster = start(text=DEFAULT.read_text())
    tasks = cluster.directory / "tasks.jsonl"
    cluster.rollmq("tasks", "examples", "--for", "topology.yaml", "--out", str(tasks))
    words = ("--tasks", str(tasks), "--group-size", str(GROUP), "--out", "out", "--json")
    said = cluster.rollmq("run", "topology.yaml", "--attach", "--quiet", *words).stdout
    report = json.loads(said.splitlines()[-1])
    wanted = GROUP * len(tasks.read_text().splitlines())
    assert sum(report["outcomes"].values()) == wanted == report["asked"]
    assert not report["outcomes"].get("failed"), report
    left = (cluster.directory / "out" / "trajectories.jsonl").read_text()
    rollouts = map(json.loads, left.splitlines())
    hosts = {
        timing["node"].partition(".")[2] or "a"
        for rollout in rollouts
        for timing in rollout["timings"]
    }
    assert hosts == {"a", "b", "c"}
    nodes = cluster.status()["nodes"]
    assert {node["host"] for node in nodes if node["role"] == "sandboxes"} == {"a", "b", "c"}
