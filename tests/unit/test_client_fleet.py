"""Questions to the router, without sockets and clocks."""

from typing import Any

import pytest

from engine.client import fleet
from engine.client.core import RETRY_S, Core
from engine.errors import NodeRefused, RemoteProtocolError
from engine.messages import AskNode, NodeAnswer, Welcome
from engine.wire import json_buffer

STATE = {
    "name": "sim-0",
    "state": "open",
    "reason": "",
    "policy_version": 3,
    "capacity": 4,
    "sessions": 1,
    "running": 1,
    "waiting": 0,
    "draining": False,
    "added": False,
    "figures": {"hit_rate": 0.5},
}


def welcomed() -> Core:
    core = Core("c", 1, 60.0)
    core.start(0.0)
    core.receive(Welcome("broker", ("run",), 2.0, 1 << 20, 8, 8, 0, 0), [], 0.0)
    core.outgoing.clear()
    return core


def asked(core: Core) -> list[AskNode]:
    found = [message for message, _ in core.outgoing if isinstance(message, AskNode)]
    core.outgoing.clear()
    return found


def done(request_id: str, value: Any) -> tuple[NodeAnswer, list[bytes]]:
    buffer, text = json_buffer("answer", value)
    return NodeAnswer(request_id, "done", buffers=(buffer,)), [text]


def test_a_question_to_a_node_is_repeated_under_its_id_until_it_is_answered() -> None:
    core = welcomed()
    message, text = fleet.backends().message()
    question = core.ask(f"ask {message.request_id}", message, text)
    assert asked(core) == [message]
    core.tick(0.1)
    core.tick(0.1 + RETRY_S)
    assert asked(core) == [message]
    core.receive(*done(message.request_id, []), 2.0)
    core.tick(5.0)
    assert asked(core) == []
    assert question.answer is not None


def test_no_node_is_no_answer_but_is_remembered() -> None:
    core = welcomed()
    message, text = fleet.backends().message()
    question = core.ask(f"ask {message.request_id}", message, text)
    core.receive(NodeAnswer(message.request_id, "no_node", "no router is heard"), [], 1.0)
    assert (question.answer, question.doubt) == (None, "no router is heard")


def test_a_question_that_is_given_up_is_asked_no_more() -> None:
    core = welcomed()
    message, text = fleet.backends().message()
    core.ask(f"ask {message.request_id}", message, text)
    core.give_up_question(f"ask {message.request_id}")
    asked(core)
    core.tick(5.0)
    assert asked(core) == []


def test_answers_become_records() -> None:
    (state,) = fleet.backends().answer(*done("q", [STATE]))
    assert (state.name, state.figures) == ("sim-0", {"hit_rate": 0.5})
    told = {"policy_version": 2, "backends": ["sim-0"], "failed": {"sim-1": "no space"}}
    published = fleet.publish(2, "/w", "keep", 1.0).answer(*done("q", told))
    assert (published.backends, published.failed) == (("sim-0",), {"sim-1": "no space"})


def test_a_refusal_is_raised_with_its_reason() -> None:
    with pytest.raises(NodeRefused, match="no space"):
        fleet.backends().answer(NodeAnswer("q", "refused", "no space"), [])


@pytest.mark.parametrize("value", [{}, [{}], [{**STATE, "more": 1}]])
def test_an_answer_that_cannot_be_read_is_a_breach_of_the_protocol(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        fleet.backends().answer(*done("q", value))


def test_a_url_becomes_an_option() -> None:
    assert fleet.options_of("http://h:1") == {"url": "http://h:1"}
    assert fleet.add("", "vllm", fleet.options_of({"a": 1}), 4).question["options"] == {"a": 1}
