"""What a key may say to the broker, and to the router."""

from pathlib import Path
from typing import Any

import pytest

from engine.messages import Announced, Cancel, Heartbeat, Hello, NodeHello, StageResult, WorkerHello
from engine.security import Allowed, Denied
from engine.security.allowed import Entry
from engine.topology import Topology, load
from nodes.broker.gate import Gate

from .test_security_allowed import HOST, LIST, OPERATOR, OTHER_HOST, STRANGER, TRAINER

TEXT = """
version: 1
run_dir: /tmp/r
hosts: {a: {address: 10.0.0.1}, b: {address: 10.0.0.2}}
keys: keys
stages: [{name: run}]
router: {}
"""
BOOT = "0123456789ab"


class List:
    def __init__(self, allowed: Allowed) -> None:
        self.allowed = allowed


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Topology:
    file: Path = tmp_path_factory.mktemp("t") / "topology.yaml"
    file.write_text(TEXT)
    return load(file)


@pytest.fixture
def listed() -> List:
    return List(LIST)


@pytest.fixture
def gate(listed: List, topology: Topology) -> Gate:
    return Gate(listed, topology)


def hello(node: str, host: str) -> WorkerHello:
    return WorkerHello(f"{node}-{BOOT}", node, host, "run", 1, 1, ())


def says(gate: Gate, key: str, message: Any, route: str) -> bool:
    try:
        gate.node(key, route.encode(), message)
    except Denied:
        return False
    return True


KEYS = {
    "a": HOST,
    "b": OTHER_HOST,
    "trainer a": TRAINER,
    "operator": OPERATOR,
    "stranger": STRANGER,
    "none": "",
}


@pytest.mark.parametrize(
    ("whose", "node", "host", "may"),
    [
        ("a", "run-0", "a", True),
        ("a", "run-0.b", "b", False),
        ("a", "run-0", "b", False),
        ("b", "run-0.b", "b", True),
        ("b", "run-0", "a", False),
        ("b", "run-0.b", "a", False),
        ("trainer a", "run-0", "a", False),
        ("operator", "run-0", "a", False),
        ("stranger", "run-0", "a", False),
        ("none", "run-0", "a", False),
    ],
)
def test_a_worker_lives_on_its_keys_host(
    gate: Gate, whose: str, node: str, host: str, may: bool
) -> None:
    key = KEYS[whose]
    assert says(gate, key, hello(node, host), f"{node}-{BOOT}") is may
    if host == ("b" if node.endswith(".b") else "a"):
        assert says(gate, key, Heartbeat(f"{node}-{BOOT}", (), 0.0), f"{node}-{BOOT}") is may


def test_a_connections_id_is_of_its_keys_host_too(gate: Gate) -> None:
    assert not says(gate, OTHER_HOST, hello("run-0.b", "b"), f"run-0-{BOOT}")


def test_a_node_has_its_own_role(gate: Gate) -> None:
    told = NodeHello("x", "router", "router", "a", {})
    assert says(gate, HOST, told, f"router-{BOOT}")
    assert not says(gate, HOST, NodeHello("x", "run-0", "router", "a", {}), f"run-0-{BOOT}")


def test_added_nodes_live_where_the_router_does(gate: Gate) -> None:
    told = NodeHello("x", "added1-0", "backend", "a", {})
    assert says(gate, HOST, told, f"added1-0-{BOOT}")
    elsewhere = NodeHello("x", "added1-0", "backend", "b", {})
    assert not says(gate, OTHER_HOST, elsewhere, f"added1-0-{BOOT}")


def test_only_the_router_tells_of_a_new_policy(gate: Gate) -> None:
    route = f"router-{BOOT}"
    assert says(gate, HOST, Announced("router", "policy_version", 3), route)
    assert not says(gate, HOST, Announced("run-0", "policy_version", 3), f"run-0-{BOOT}")
    assert not says(gate, OTHER_HOST, Announced("router", "policy_version", 3), f"run-0.b-{BOOT}")


def test_a_result_is_of_the_worker_that_sends_it(gate: Gate) -> None:
    result = StageResult(f"run-0-{BOOT}", "r", "run", 1, "done", 0.0)
    gate.result(HOST, result)
    for key in (OTHER_HOST, TRAINER, STRANGER, ""):
        with pytest.raises(Denied):
            gate.result(key, result)


def test_clients_speak_for_themselves_and_operators_for_all(gate: Gate) -> None:
    gate.trainer(TRAINER, "", Hello("a", 1))
    gate.trainer(TRAINER, "", Hello("a-7", 1))
    gate.trainer(TRAINER, TRAINER, Cancel("c", ("r",)))
    gate.trainer(TRAINER, TRAINER, Cancel("c", ("r",), client_id="a-8"))
    gate.trainer(OPERATOR, "", Hello("b", 1))
    gate.trainer(OPERATOR, OPERATOR, Cancel("c", ("r",), client_id="b"))
    for message in (Hello("b", 1), Hello("ab", 1), Cancel("c", ("r",), client_id="b")):
        with pytest.raises(Denied, match="speaks for a or a-"):
            gate.trainer(TRAINER, TRAINER, message)


def test_a_connection_stays_with_its_first_key_or_that_names_next(gate: Gate, listed: List) -> None:
    with pytest.raises(Denied, match="belongs to another key"):
        gate.trainer(OPERATOR, TRAINER, Hello("a", 1))
    listed.allowed = LIST.put(Entry("a", "trainer", (TRAINER, STRANGER)))
    gate.trainer(STRANGER, TRAINER, Hello("a", 1))


def test_a_revoked_key_says_nothing(gate: Gate, listed: List) -> None:
    listed.allowed = LIST.put(Entry("a", "trainer", ())).put(Entry("b", "host", ()))
    with pytest.raises(Denied, match="revoked"):
        gate.trainer(TRAINER, TRAINER, Hello("a", 1))
    assert not says(gate, OTHER_HOST, hello("run-0.b", "b"), f"run-0.b-{BOOT}")
