"""Jobs on a real Slurm cluster of three nodes: run, cut, begun again, cancelled; nothing lost."""

import json
from pathlib import Path

import pytest

from engine import Task

from .cluster import NODES, Cluster
from .site import ROLLMQ, Site

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

TOPOLOGY = Path(__file__).parents[2] / "topology.yaml"
HOSTILE = "a b'c\"d;$(touch pwned)`touch pwned`\\ #e"
GROUP, GATED = 14, 20


def test_a_run_with_sandboxes_and_inference_goes_over_three_nodes(site: Site) -> None:
    text = TOPOLOGY.read_text()
    hosts = "  trainer: {}\n  left: {}\n  right: {}\n"
    changed = text.replace("hosts:\n  local: {}\n", f"hosts:\n{hosts}")
    assert changed != text
    (site.path / "topology.yaml").write_text(changed)
    site.rollmq("keys", "new", "keys", "--topology", "topology.yaml")
    site.rollmq("tasks", "examples", "--for", "topology.yaml", "--out", "tasks.jsonl")
    job = site.submit_run(group_size=GROUP)
    assert site.until_over(job) == "COMPLETED", site.everything(job)
    site.expect_each_once(15, GROUP)
    assert "sandboxes on right: bubblewrap" in site.said(job)
    assert json.loads(site.address(job).read_text())["hosts"] == dict(
        zip(("trainer", "left", "right"), NODES, strict=True)
    )
    assert site.left_on_disks() == []


def test_a_lost_node_is_shrunk_around(site: Site, cluster: Cluster) -> None:
    site.topology("{a: {}, b: {}, c: {}}", "{b: 1, c: 1}")
    site.tasks(100, GATED)
    job = site.submit_run()
    site.until_written(100, job)
    cluster.lose_node("n3")
    site.until_said(job, "n3 is lost and nothing replaces it")
    site.gate.touch()
    assert site.until_over(job) == "COMPLETED", site.everything(job)
    site.expect_each_once(100 + GATED)


def test_a_lost_node_is_replaced_by_a_spare_one(site: Site, cluster: Cluster) -> None:
    site.topology("{a: {}, b: {}}", "{b: 1}")
    site.tasks(100, GATED)
    job = site.submit_run("--nodes", "3")
    site.until_written(100, job)
    cluster.lose_node("n2")
    site.until_said(job, "n2 is lost, n3 replaces it")
    site.gate.touch()
    assert site.until_over(job) == "COMPLETED", site.everything(job)
    site.expect_each_once(100 + GATED)


def test_a_requeued_job_goes_on_from_its_journal(site: Site, cluster: Cluster) -> None:
    site.topology("{a: {}, b: {}}", "{b: 1}")
    job = site.submit()
    site.until_said(job, "ready: ")
    submit_gated(site, job)
    cluster.call("scontrol", "requeue", job)
    site.until_said(job, "ready: ", times=2)
    assert site.log(job, "a").count('"origin"') == 2
    receive(site, job)


def test_a_job_whose_broker_lost_its_node_goes_on_there_once_it_is_back(
    site: Site, cluster: Cluster
) -> None:
    site.topology("{a: {}, b: {}}", "{b: 1}")
    job = site.submit("--sbatch-option", "nodelist=n[1-2]")
    site.until_said(job, "ready: ")
    submit_gated(site, job)
    cluster.lose_node("n1")
    site.until_begun_again(job)
    cluster.start_node("n1")
    site.until_said(job, "ready: ", times=2)
    assert '"origin": "local"' in site.log(job, "a")
    receive(site, job)


def test_a_job_that_drains_goes_on_at_other_nodes(site: Site, cluster: Cluster) -> None:
    site.topology("{a: {}, b: {}}", "{b: 1}")
    job = site.submit()
    site.until_said(job, "ready: ")
    submit_gated(site, job)
    cluster.call("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    site.until_said(job, "ready: ", times=2)
    assert '"origin": "shared"' in site.log(job, "a")
    assert "host a is node n2" in site.said(job)
    receive(site, job)


def submit_gated(site: Site, job: str) -> None:
    """Submit what waits for the gate, and be sure that it was accepted."""
    with site.trainer(job) as client:
        for number in range(GATED):
            client.submit(Task(f"t-{number}", "kinds.gated", {"gate": str(site.gate)}), 1)


def receive(site: Site, job: str) -> None:
    """Open the gate, and expect each rollout once without submitting any of them again."""
    site.gate.touch()
    with site.trainer(job) as client:
        found = sorted(rollout.task_id for rollout in client.rollouts())
    assert found == sorted(f"t-{number}" for number in range(GATED))


def test_scancel_with_a_signal_drains(site: Site, cluster: Cluster) -> None:
    site.topology("{a: {}, b: {}, c: {}}", "{b: 1, c: 1}")
    site.tasks(100, GATED)
    job = site.submit_run()
    site.until_written(100, job)
    cluster.call("scancel", "--batch", "--signal=TERM", job)
    site.until_over(job)
    assert site.summary["interrupted"]
    record = json.loads((site.address(job).parent / "journal.json").read_text())
    assert record == {"node": "n1", "kept": True}
    assert site.left_on_disks() == []


def test_a_cancelled_job_leaves_no_process_and_a_later_one_ends_the_run(
    site: Site, cluster: Cluster
) -> None:
    site.topology("{a: {}, b: {}, c: {}}", "{b: 1, c: 1}")
    site.tasks(100, GATED)
    job = site.submit_run()
    site.until_written(100, job)
    assert all(map(cluster.processes_of, NODES))
    cluster.call("scancel", job)
    site.until_over(job)
    cluster.until(lambda: not any(map(cluster.processes_of, NODES)), "no process is left")
    site.gate.touch()
    assert site.until_over(site.submit_run()) == "COMPLETED"
    site.expect_each_once(100 + GATED)


def test_an_allocation_of_ones_own_does_the_same(site: Site) -> None:
    site.topology("{a: {}, b: {}}", "{b: 1}")
    site.tasks(20, 0)
    local = ("--local-dir", str(site.path / "local"))
    files = ("--tasks", "tasks.jsonl", "--out", "out")
    command = ("up", "topology.yaml", "--launcher", "slurm", *files, *local)
    said = site.call("salloc", "--nodes=2", "--ntasks-per-node=1", ROLLMQ, *command)
    assert "host b is node n2" in said
    site.expect_each_once(20)
    assert site.left_on_disks() == []


def test_hostile_arguments_reach_slurm_as_they_are(site: Site, cluster: Cluster) -> None:
    site.topology("{a: {}}", "{a: 1}")
    job = site.submit("--sbatch-option", f"comment={HOSTILE}", "--sbatch-option", "hold")
    assert cluster.call("squeue", "--noheader", f"--jobs={job}", "--format=%k").strip() == HOSTILE
    assert not (site.path / "pwned").exists()
