"""Jobs of Slurm, as far as they can be decided without Slurm: places, files, scripts, journals."""

import shlex
from argparse import ArgumentParser
from pathlib import Path

import pytest

from engine.errors import NodeFailed
from engine.slurm.allocation import Allocation, expect_program, node_list, read_nodes, runs_steps
from engine.slurm.commands import add_submit, script_of
from engine.slurm.journals import KEPT, Places, Record, keep, origin, read_record, take
from engine.slurm.placing import needs, next_node, place, stays
from engine.slurm.resolving import resolve
from engine.slurm.script import batch_script
from engine.topology import Topology, load

TOPOLOGY = """\
version: 1
name: placed
insecure: true
hosts: {trainer: {}, left: {}, right: {}}
stages:
  - {name: init, workers: {left: 1, right: 1}}
  - {name: run, workers: {left: 2, right: 2}}
  - {name: eval, workers: {right: 1}}
router: {}
backends:
  - {name: sim, kind: simulator, host: left, options: {answers: answers.json, seed: 3}}
"""
NODES = ("n1", "n2", "n3", "n4")
ADDRESSES = {"trainer": "127.0.0.1", "left": "127.0.0.2", "right": "127.0.0.3"}


@pytest.fixture
def topology(tmp_path: Path) -> Topology:
    file = tmp_path / "topology.yaml"
    file.write_text(TOPOLOGY)
    return load(file)


def submitted(topology: Topology, *words: str) -> str:
    parser = ArgumentParser()
    add_submit(parser.add_subparsers())
    return script_of(topology, parser.parse_args(["submit", "slurm", str(topology.path), *words]))


def test_the_brokers_host_is_the_node_that_runs_the_script() -> None:
    placed = place(["a", "b", "c"], "b", NODES, "n2")
    assert placed == {"a": "n1", "b": "n2", "c": "n3"}


def test_a_host_named_like_a_node_is_placed_on_it() -> None:
    placed = place(["n3", "b", "c"], "b", NODES, "n1")
    assert placed == {"n3": "n3", "b": "n1", "c": "n2"}


def test_an_allocation_with_too_few_nodes_is_refused_with_the_number_needed() -> None:
    with pytest.raises(NodeFailed, match="--nodes=3"):
        place(["a", "b", "c"], "a", ["n1", "n2"], "n1")


@pytest.mark.parametrize(
    ("up", "found"),
    [({"n1", "n2", "n4"}, "n2"), ({"n1", "n4"}, "n4"), ({"n1", "n3"}, None), (set(), None)],
)
def test_a_host_starts_again_where_it_was_or_on_a_spare_node(
    up: set[str], found: str | None
) -> None:
    assert next_node("b", {"a": "n1", "b": "n2", "c": "n3"}, NODES, up) == found


def test_hosts_to_whose_addresses_others_connect_stay_where_they_are(topology: Topology) -> None:
    assert [host.name for host in topology.hosts if stays(topology, host.name)] == ["trainer"]


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        (set(), ""),
        ({"trainer"}, "the broker"),
        ({"left"}, "every backend"),
        ({"right"}, "every worker of stage eval"),
    ],
)
def test_a_topology_goes_on_without_a_host_that_is_not_the_only_one_of_its_kind(
    topology: Topology, lost: set[str], why: str
) -> None:
    assert needs(topology, lost).startswith(why)
    assert bool(needs(topology, lost)) == bool(why)


def test_a_host_without_workers_can_be_done_without(tmp_path: Path) -> None:
    file = tmp_path / "topology.yaml"
    file.write_text("version: 1\nhosts: {a: {}, b: {}}\nstages: [{name: run}]\n")
    assert not needs(load(file), {"b"})


def test_the_file_of_a_host_is_the_topology_with_the_nodes_addresses(
    topology: Topology, tmp_path: Path
) -> None:
    file = tmp_path / "elsewhere" / "left.yaml"
    file.parent.mkdir()
    file.write_text(resolve(topology, ADDRESSES, Path("/tmp/r/left")))
    found = load(file)
    assert {host.name: host.address for host in found.hosts} == ADDRESSES
    assert found.run_dir == Path("/tmp/r/left")
    assert found.nodes() == topology.nodes()
    assert found.beside == tmp_path
    assert found.backend("sim").options == {"answers": "answers.json", "seed": 3}
    assert (found.stages, found.limits) == (topology.stages, topology.limits)


def test_one_host_without_keys_talks_over_ipc(tmp_path: Path) -> None:
    file = tmp_path / "topology.yaml"
    file.write_text("version: 1\nstages: [{name: run}]\n")
    (tmp_path / "job.yaml").write_text(resolve(load(file), {"local": "10.0.0.1"}, Path("/tmp/r")))
    assert load(tmp_path / "job.yaml").transport == "ipc"


def test_nodes_are_read_with_addresses_and_states() -> None:
    lines = (
        "NodeName=n1 Arch=x86_64 NodeAddr=10.0.0.1 NodeHostName=n1 State=MIXED Weight=1\n"
        "NodeName=n2 Arch=x86_64 NodeAddr=n2 State=DOWN* Reason=Not responding [slurm@x]\n"
    )
    found = [(node.name, node.address, node.is_up) for node in read_nodes(lines)]
    assert found == [("n1", "10.0.0.1", True), ("n2", "n2", False)]


@pytest.mark.parametrize("state", ["IDLE", "ALLOCATED", "MIXED", "MIXED+DRAIN", "COMPLETING"])
def test_a_node_that_runs_steps_is_up(state: str) -> None:
    assert runs_steps(state)


@pytest.mark.parametrize(
    "state", ["DOWN", "DOWN*", "MIXED*", "MIXED+NOT_RESPONDING", "UNKNOWN", "IDLE+POWERED_DOWN"]
)
def test_a_node_that_slurm_does_not_hear_is_lost(state: str) -> None:
    assert not runs_steps(state)


def test_a_job_without_nodes_has_no_node_list() -> None:
    assert not node_list("JobId=7 ReqNodeList=n9 NodeList=(null) BatchHost=n1")
    assert node_list("JobId=7 ReqNodeList=n9 NodeList=n[1-3] BatchHost=n1") == "n[1-3]"


def test_where_slurm_is_missing_the_error_names_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NodeFailed, match="sbatch is not installed here"):
        expect_program("sbatch")


def test_outside_an_allocation_the_error_says_what_to_do() -> None:
    with pytest.raises(NodeFailed, match="rollmq submit slurm"):
        Allocation.of_environment({})


def test_the_script_asks_for_a_node_for_each_host_and_runs_the_launcher(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/opt/python")
    words = ["--tasks", "/d/tasks.jsonl", "--out", "/d/out", "--group-size", "8"]
    words += ["--partition", "gpu", "--time", "4:00:00", "--gpus-per-node", "8"]
    script = submitted(topology, *words, "--sbatch-option", "exclusive")
    directory = topology.path.parent
    assert script == (
        "#!/bin/bash\n"
        "#SBATCH --job-name=placed\n"
        "#SBATCH --nodes=3\n"
        "#SBATCH --ntasks-per-node=1\n"
        f"#SBATCH --output={directory}/run/slurm-%j.out\n"
        "#SBATCH --requeue\n"
        "#SBATCH --no-kill\n"
        "#SBATCH --open-mode=append\n"
        "#SBATCH --signal=B:TERM@142\n"
        "#SBATCH --partition=gpu\n"
        "#SBATCH --time=4:00:00\n"
        "#SBATCH --gpus-per-node=8\n"
        "#SBATCH --exclusive\n"
        "\n"
        f"exec /opt/python -m engine.cli up {directory}/topology.yaml --launcher slurm "
        "--tasks /d/tasks.jsonl --group-size 8 --out /d/out\n"
    )


def test_hostile_arguments_stay_arguments() -> None:
    hostile = "a b'c\"d;$(touch x)`y`\\ #z"
    script = batch_script({"comment": hostile}, ["run", hostile, "-n"])
    directive, command = script.splitlines()[1], script.splitlines()[3]
    assert directive == '#SBATCH --comment="a b\'c\\"d;$(touch x)`y`\\\\ #z"'
    assert shlex.split(command) == ["exec", "run", hostile, "-n"]


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "a\x1bb", "a\u2028b"])
def test_a_value_that_is_more_than_a_line_is_refused(value: str) -> None:
    with pytest.raises(NodeFailed, match="control characters"):
        batch_script({"comment": value}, [])
    with pytest.raises(NodeFailed, match="control characters"):
        batch_script({}, [value])


@pytest.mark.parametrize("name", ["", "Time", "x y", "x=y", "-x", "x\n"])
def test_a_name_that_is_no_option_is_refused(name: str) -> None:
    with pytest.raises(NodeFailed, match="no option of sbatch"):
        batch_script({name: "1"}, [])


def test_a_percent_sign_in_a_directory_is_no_pattern(short_path: Path) -> None:
    file = short_path / "100%j" / "topology.yaml"
    file.parent.mkdir()
    file.write_text(TOPOLOGY)
    assert "/100%%j/run/slurm-%j.out" in submitted(load(file))


@pytest.mark.parametrize(
    ("record", "is_local", "found"),
    [
        (None, True, "new"),
        (Record("n1", kept=False), True, "local"),
        (Record("n1", kept=False), False, "lost"),
        (Record("n2", kept=False), True, "lost"),
        (Record("n1", kept=True), True, "shared"),
        (Record("n2", kept=True), False, "shared"),
    ],
)
def test_a_broker_goes_on_from_the_newest_journal_that_it_can_reach(
    record: Record | None, is_local: bool, found: str
) -> None:
    assert origin(record, "n1", is_local=is_local) == found


def test_a_kept_journal_goes_on_at_another_node_and_is_used_once(tmp_path: Path) -> None:
    first, shared, second = (tmp_path / name for name in ("n1", "shared", "n2"))
    for each in (first, shared, second):
        each.mkdir()
    assert take(Places(first, shared), "n1") == "new"
    (first / "journal" / "bodies").mkdir(parents=True)
    (first / "journal" / "bodies" / "1.seg").write_bytes(b"body")
    (first / "backends.json").write_text("[]")
    keep(Places(first, shared), "n1")
    assert read_record(shared) == Record("n1", kept=True)

    (second / "journal").mkdir()
    (second / "journal" / "stale").write_text("of long ago")
    assert take(Places(second, shared), "n2") == "shared"
    assert [path.name for path in (second / "journal").rglob("*")] == ["bodies", "1.seg"]
    assert (second / "backends.json").read_text() == "[]"
    assert not (shared / KEPT).exists()
    assert take(Places(first, shared), "n1") == "lost"
    assert not (first / "journal").exists()


def test_a_journal_that_stayed_is_used_again(tmp_path: Path) -> None:
    local, shared = tmp_path / "local", tmp_path / "shared"
    shared.mkdir()
    assert take(Places(local, shared), "n1") == "new"
    (local / "journal").mkdir(parents=True)
    assert take(Places(local, shared), "n1") == "local"
    assert (local / "journal").exists()
