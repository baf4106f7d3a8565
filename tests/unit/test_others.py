"""What the broker keeps of nodes that are no workers."""

import json

from engine.messages import NodeHello, Part
from engine.wire import json_buffer
from nodes.broker.others import FORGET_LEASES, MOST_ADDED, Others


def hello(node: str, role: str = "backend") -> NodeHello:
    return NodeHello(f"{node}-1", node, role, "local", {})  # type: ignore[arg-type]


def test_a_question_goes_to_whoever_of_the_role_was_heard_last_and_not_long_ago() -> None:
    others = Others({"router"}, lease_s=3.0)
    others.heard(hello("router", "router"), b"old", 1.0)
    others.heard(hello("router", "router"), b"new", 2.0)
    others.heard(hello("sim-0"), b"sim", 2.0)
    assert others.routes("router", 4.0) == [b"new"]
    assert others.routes("router", 5.5) == []


def test_backends_that_were_added_are_taken_up_to_a_bound_and_forgotten_when_long_silent() -> None:
    others = Others({"router"}, lease_s=1.0)
    assert not others.takes(hello("stranger", "worker"))
    for number in range(MOST_ADDED):
        assert others.takes(hello("added-0"))
        others.heard(hello(f"added-{number}"), b"", 0.0)
    assert not others.takes(hello("one-more"))
    assert others.takes(hello("added-0"))
    others.heard(hello("router", "router"), b"", FORGET_LEASES + 1.0)
    assert [node["node"] for node in others.status(0.0)] == ["router"]


def test_what_a_node_looks_after_is_in_the_status_as_json() -> None:
    others = Others({"router"}, lease_s=3.0)
    parts = (Part("sim-0", "open", {"sessions": 2.0}),)
    others.heard(NodeHello("router-1", "router", "router", "local", {}, parts), b"", 1.0)
    _, text = json_buffer("status", others.status(2.0))
    [told] = json.loads(text)
    assert told["parts"] == [{"name": "sim-0", "state": "open", "figures": {"sessions": 2.0}}]
