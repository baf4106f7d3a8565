"""What of a topology may change while it runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.topology import Topology, load_text, merged, must_replace, plan

TEXT = """\
version: 1
hosts: {a: {}, b: {}}
router: {}
stages:
  - {name: init, workers: {a: 1, b: 1}}
  - {name: run, workers: {a: 2, b: 1}, slots: 8}
  - {name: eval, workers: {a: 1}}
backends:
  - {name: sim, kind: simulator, count: 2}
sandboxes: {}
"""

Read = Callable[..., Topology]


@pytest.fixture
def read() -> Read:
    def changed(*pairs: tuple[str, str], directory: str = "/tmp/x") -> Topology:
        text = TEXT
        for before, after in pairs:
            assert before in text
            text = text.replace(before, after)
        return load_text(text, Path(directory) / "topology.yaml", "topology.yaml")

    return changed


def rows(running: Topology, wanted: Topology) -> dict[str, tuple[str, str, bool]]:
    return {c.what: (c.was, c.now, c.live) for c in plan(running, wanted).changes}


def test_nothing_differs_from_itself(read: Read) -> None:
    assert plan(read(), read()).changes == ()


def test_where_the_files_of_two_machines_lie_is_told_and_never_taken_over(read: Read) -> None:
    elsewhere = read(directory="/srv/y")
    planned = plan(read(), elsewhere)
    assert {change.what for change in planned.left} == {"beside", "run_dir"}
    assert planned.merged == read()


@pytest.mark.parametrize(
    ("before", "after", "what", "was", "now"),
    [
        ("workers: {a: 2, b: 1}", "workers: {a: 2, b: 4}", "stages.run.workers.b", "1", "4"),
        ("workers: {a: 2, b: 1}", "workers: {a: 2}", "stages.run.workers.b", "1", "-"),
        ("count: 2", "count: 3", "backends.sim.count", "2", "3"),
        ("count: 2", "count: 2, capacity: 9", "backends.sim.capacity", "64", "9"),
        ("version: 1", "version: 1\nlog_level: debug", "log_level", "info", "debug"),
        ("version: 1", "version: 1\nlimits: {rollouts: 5000}", "limits.rollouts", "100000", "5000"),
        (
            "version: 1",
            "version: 1\ntimeouts: {cancel_grace_s: 5}",
            "timeouts.cancel_grace_s",
            "2.0",
            "5.0",
        ),
        ("name: eval", "name: eval, attempts: 7", "stages.eval.attempts", "3", "7"),
        ("name: eval", "name: eval, timeout_s: 7", "stages.eval.timeout_s", "600.0", "7.0"),
    ],
)
def test_what_can_change_live_does(
    read: Read, before: str, after: str, what: str, was: str, now: str
) -> None:
    wanted = read((before, after))
    assert rows(read(), wanted)[what] == (was, now, True)
    assert merged(read(), wanted) == wanted


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("version: 1", "version: 1\ndurability: none", "durability"),
        ("version: 1", "version: 1\ntimeouts: {heartbeat_s: 1}", "timeouts.heartbeat_s"),
        ("version: 1", "version: 1\nlimits: {message_bytes: 1MiB}", "limits.message_bytes"),
        ("router: {}", "router: {policy: random}", "router.policy"),
        ("name: eval", "name: eval, handler: 'a.b:c'", "stages.eval.handler"),
        ("sandboxes: {}", "sandboxes: {pool: 3}", "sandboxes.pool"),
        ("- {name: eval,", "- {name: judge}\n  - {name: eval,", "stages, in order"),
        ("count: 2", "count: 2, host: b", "backends.sim.host"),
    ],
)
def test_what_needs_a_restart_is_left(read: Read, before: str, after: str, what: str) -> None:
    found = rows(read(), read((before, after)))
    assert found[what][2] is False
    assert {live for _, _, live in found.values()} == {False}


def test_what_was_merged_is_a_topology_and_merging_again_changes_nothing(read: Read) -> None:
    wanted = read(("b: 1}, slots: 8", "b: 3}, slots: 9"), ("router: {}", "router: {queue: 9}"))
    once = merged(read(), wanted)
    assert merged(once, wanted) == once
    assert once.router == read().router


def test_hosts_come_and_go_but_not_the_one_at_which_all_connect(read: Read) -> None:
    joined = read(("b: {}}", "b: {}, c: {}}"), ("{a: 2, b: 1}", "{a: 2, b: 1, c: 1}"))
    assert {host.name for host in merged(read(), joined).hosts} == {"a", "b", "c"}
    back = merged(joined, read())
    assert {node.host for node in back.nodes()} == {"a", "b"}
    moved = read(("{a: {}, b: {}}", "{b: {}}"), ("a: 1, ", ""), ("a: 2, ", ""), ("{a: 1}", "1"))
    assert {host.name for host in merged(read(), moved).hosts} == {"a", "b"}


def test_a_worker_is_replaced_that_outgrows_its_table_or_whose_pins_may_lead_elsewhere(
    read: Read,
) -> None:
    [node] = [node for node in read().nodes("b") if node.spec == "run"]
    assert not must_replace(node, read(), read(("slots: 8", "slots: 16")))
    assert must_replace(node, read(), read(("slots: 8", "slots: 17")))
    assert must_replace(
        node, read(), read(("eval, workers: {a: 1}", "eval, workers: {a: 1, b: 1}"))
    )


def test_a_backend_is_replaced_whose_own_settings_change_and_not_for_the_count(read: Read) -> None:
    node = read().node("sim-0")
    assert must_replace(node, read(), read(("count: 2", "count: 2, capacity: 3")))
    assert not must_replace(node, read(), read(("count: 2", "count: 5")))


def test_a_workers_name_says_its_host_and_belongs_to_it(read: Read) -> None:
    topology = read()
    assert topology.may_be("run-7.b", "run", "b")
    assert topology.may_be("run-7", "run", "a")
    assert not topology.may_be("run-7.b", "run", "a")
    assert not topology.may_be("run-7", "run", "b")
    assert not topology.may_be("run-07", "run", "a")
    assert not topology.may_be("../x-7", "run", "a")
    assert [topology.host_by_name(name) for name in ("run-9.b", "run-9", "added1-0")] == list("baa")
