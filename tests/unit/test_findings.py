"""Each rule of the doctor on a status with one thing wrong, and on one in which nothing is."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from engine.figures import Histogram
from engine.seeing.findings import findings, unreachable
from engine.seeing.found import NAMES, Finding
from engine.seeing.rates import Look, Span
from engine.topology import Topology, load

from ..ledger_kit import Driver

TOPOLOGY = """\
version: 1
hosts: {a: {}, b: {}}
sandboxes: {}
router: {}
backends: [{name: sim, kind: simulator}]
stages:
  - {name: init, workers: {a: 1}}
  - {name: run, workers: {a: 1, b: 1}}
  - {name: eval, workers: {a: 1}}
"""
Status = dict[str, Any]
Change = Callable[[Status, Status], None]


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Topology:
    file: Path = tmp_path_factory.mktemp("t") / "topology.yaml"
    file.write_text(TOPOLOGY)
    return load(file)


def healthy(topology: Topology) -> Status:
    """Return the status of a topology in which everything is there and idle."""
    driver = Driver()
    driver.client()
    for node in topology.nodes():
        if node.role == "worker":
            driver.worker(node.name, node.spec, host=node.host, node=node.name, slots=2)
    driver.submit("r")
    status: Any = driver.ledger.status(driver.now)
    others = [node for node in topology.nodes() if node.role not in {"worker", "broker"}]
    part = {"sessions": 1.0, "running": 1.0, "waiting": 0.0, "tokens": 9.0, "stalled_s": 0.0}
    status["nodes"] = [
        {
            "node": node.name,
            "role": node.role,
            "host": node.host,
            "heard_s": 0.1,
            "figures": {"started": 3.0, "failed": 0.0} if node.role == "sandboxes" else {},
            "parts": [{"name": "sim-0", "state": "open", "figures": part}]
            if node.role == "router"
            else [],
        }
        for node in others
    ]
    for stage in status["stages"]:
        stage["timeout_s"] = 600.0
    extra = {"dispatch_wait": Histogram().report(), "commit": Histogram().report()}
    return status | {
        "journal": {"full": 0.0, "full_s": 0.0},
        "loop": {"lag_s": 0.001, "waiting_for_disk": 0, "refused_on_front": 0},
        "disk_free_bytes": 1 << 40,
        **extra,
    }


def diagnosed(topology: Topology, change: Change | None = None) -> list[Finding]:
    before = healthy(topology)
    last = deepcopy(before)
    if change is not None:
        change(before, last)
    return findings(Span.between(Look(before, 0.0), Look(last, 2.0)), topology)


def row(status: Status, section: str, **named: Any) -> dict[str, Any]:
    return next(each for each in status[section] if named.items() <= each.items())


def silent(_: Status, last: Status) -> None:
    row(last, "workers", node="run-0.b")["heard_s"] = 2.6


def hung(_: Status, last: Status) -> None:
    worker = row(last, "workers", node="init-0")
    worker |= {"lag_s": 4.0, "culprit": {"rollout_id": "r", "attempt": 1, "leased_s": 9.0}}


def stopped(_: Status, last: Status) -> None:
    row(last, "workers", node="init-0")["lag_s"] = 4.0


def slow(_: Status, last: Status) -> None:
    row(last, "waits", rollout_id="r")["since_s"] = 300.0


def unusual(_: Status, last: Status) -> None:
    row(last, "stages", stage="init")["duration"]["counts"][3] = 1000
    row(last, "waits", rollout_id="r")["since_s"] = 31.0


def stalled(_: Status, last: Status) -> None:
    row(last, "nodes", role="router")["parts"][0]["figures"]["stalled_s"] = 5.5


def sick(_: Status, last: Status) -> None:
    row(last, "nodes", role="router")["parts"][0]["state"] = "sick"


def no_host(_: Status, last: Status) -> None:
    last["workers"] = [worker for worker in last["workers"] if worker["host"] != "b"]
    last["nodes"] = [node for node in last["nodes"] if node["host"] != "b"]


def no_node(_: Status, last: Status) -> None:
    last["nodes"] = [node for node in last["nodes"] if node["node"] != "sandboxes-0.b"]


def mute(_: Status, last: Status) -> None:
    row(last, "nodes", role="router")["heard_s"] = 3.1


def nobody(_: Status, last: Status) -> None:
    row(last, "stages", stage="eval").update(ready=3, workers_usable=0)


def full_queue(_: Status, last: Status) -> None:
    row(last, "stages", stage="eval").update(queued={"a": 4}, ready=4, slots_free=0)


def full_bound(_: Status, last: Status) -> None:
    last["bounds"]["rollouts"] = [96, 100]


def full_disk(_: Status, last: Status) -> None:
    last["journal"] = {"full": 1.0, "full_s": 12.0}


def slow_disk(_: Status, last: Status) -> None:
    last["commit"]["counts"][-3] = 5


def slow_loop(_: Status, last: Status) -> None:
    last["loop"]["lag_s"] = 0.3


def no_ack(before: Status, last: Status) -> None:
    last["clients"][0].update(delivered=8, pending=5, oldest_s=2.5)
    before["clients"][0].update(delivered=8, pending=5, oldest_s=0.5)


def away(_: Status, last: Status) -> None:
    last["clients"][0].update(connected=False, pending=5)


def no_sandbox(before: Status, last: Status) -> None:
    row(before, "nodes", node="sandboxes-0")["figures"]["failed"] = 1.0
    row(last, "nodes", node="sandboxes-0")["figures"]["failed"] = 2.0


def expired(_: Status, last: Status) -> None:
    last["counts"]["expired"] = 2


def garbage(_: Status, last: Status) -> None:
    last["loop"]["refused_on_front"] = 7


def restarted(_: Status, last: Status) -> None:
    last["recovering"] = True


WRONG: dict[Change, tuple[str, str]] = {
    silent: ("silent-worker", "run-0.b on b"),
    hung: ("hung-handler", "init-0 on a"),
    stopped: ("stopped-host", "init-0 on a"),
    slow: ("slow-attempt", "init-0 on a"),
    unusual: ("slow-attempt", "init-0 on a"),
    stalled: ("stalled-backend", "sim-0"),
    sick: ("backend-not-open", "sim-0"),
    no_host: ("host-not-there", "b"),
    no_node: ("missing-node", "b"),
    mute: ("silent-node", "router on a"),
    nobody: ("stage-without-worker", "stage eval"),
    full_queue: ("full-queue", "stage eval on a"),
    full_bound: ("full-bound", "stage init: 1 rollouts"),
    full_disk: ("disk-full", "broker"),
    slow_disk: ("slow-disk", "broker"),
    slow_loop: ("slow-loop", "broker"),
    no_ack: ("client-not-acknowledging", "client trainer"),
    away: ("client-away", "client trainer"),
    no_sandbox: ("sandboxes-failing", "sandboxes-0 on a"),
    expired: ("leases-expired", "broker"),
    garbage: ("refused-messages", "broker"),
    restarted: ("recovering", "broker"),
}


def test_a_healthy_topology_has_no_finding(topology: Topology) -> None:
    assert diagnosed(topology) == []


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_one_thing_wrong_is_one_finding_with_its_owner(topology: Topology, change: Change) -> None:
    found = diagnosed(topology, change)
    assert [(each.name, each.who) for each in found] == [WRONG[change]]
    assert all((each.what, each.measured, each.bound, each.advice) for each in found)


def test_every_finding_has_a_test() -> None:
    assert {name for name, _ in WRONG.values()} | {"broker-unreachable"} == set(NAMES)


def test_the_most_severe_come_first_and_of_those_the_longest(topology: Topology) -> None:
    def much(before: Status, last: Status) -> None:
        for change in (away, expired, stalled, full_disk):
            change(before, last)

    names = [each.name for each in diagnosed(topology, much)]
    assert names == ["disk-full", "stalled-backend", "leases-expired", "client-away"]


def test_a_broker_that_was_replaced_between_two_looks_has_no_changes(topology: Topology) -> None:
    def replaced(before: Status, last: Status) -> None:
        before["broker_id"] = "another"
        garbage(before, last)
        expired(before, last)

    assert diagnosed(topology, replaced) == []


def test_a_silent_broker_is_a_finding_of_its_own() -> None:
    finding = unreachable("ipc:///run/s/front", 5.0)
    assert (finding.severity, finding.name) == ("critical", "broker-unreachable")
    assert "ipc:///run/s/front" in finding.what


def test_the_page_explains_every_finding() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "observability.md").read_text()
    explained = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert [name for name in explained if name in NAMES] == list(NAMES)
