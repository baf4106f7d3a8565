"""The broker's copy of the topology: asked, kept, handed out."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.messages import AskNode, NodeHello
from engine.topology import Topology, load, load_text
from engine.topology.applied import begin, kept, running
from engine.wire import json_buffer
from nodes.broker.applying import Applying

TEXT = "version: 1\nstages: [{name: run, slots: 4}]\n"


@pytest.fixture
def topology(tmp_path: Path) -> Topology:
    file = tmp_path / "topology.yaml"
    file.write_text(TEXT)
    return load(file)


def asked(name: str, text: str, *, dry_run: bool = False) -> tuple[AskNode, list[bytes]]:
    question = {"file": "topology.yaml", "topology": text, "dry_run": dry_run}
    buffer, body = json_buffer("question", question)
    return AskNode(name, "broker", (buffer,)), [body]


def told(applying: Applying, name: str, text: str, *, dry_run: bool = False) -> Any:
    answer, body = applying.ask(*asked(name, text, dry_run=dry_run))
    return json.loads(body[0]) if answer.code == "done" else answer.message


def test_what_is_applied_is_kept_before_the_broker_goes_by_it(topology: Topology) -> None:
    taken: list[int] = []

    def take(newer: Topology) -> None:
        now = kept(topology)
        assert now is not None
        assert load_text(now.text, topology.path, "") == newer
        taken.append(newer.stages[0].slots)

    applying = Applying(topology, begin(topology), take)
    assert told(applying, "q1", TEXT.replace("4", "6"), dry_run=True)["revision"] == 1
    assert taken == []
    assert told(applying, "q2", TEXT.replace("4", "6"))["revision"] == 2
    assert taken == [6]


def test_a_question_that_comes_again_is_answered_as_before_and_done_once(
    topology: Topology,
) -> None:
    taken: list[Topology] = []
    applying = Applying(topology, begin(topology), taken.append)
    first = told(applying, "q", TEXT.replace("4", "6"))
    assert told(applying, "q", TEXT.replace("4", "6")) == first
    assert len(first["changes"]) == 2
    assert len(taken) == 1


def test_a_wrong_topology_is_refused_with_its_place(topology: Topology) -> None:
    applying = Applying(topology, begin(topology), lambda _: None)
    assert told(applying, "q", "version: 1\nstages: []\n").startswith("topology.yaml:2: stages:")


def test_a_launcher_is_told_unless_its_hello_has_the_mark(topology: Topology) -> None:
    applied = begin(topology)
    applying = Applying(topology, applied, lambda _: None)

    def hello(**figures: float) -> NodeHello:
        return NodeHello("launcher.a-1", "launcher.a", "launcher", "a", figures)

    reply, body = applying.reply(hello(), "broker-1", tuple)
    assert json.loads(body[0]) == applied.text
    reply, body = applying.reply(hello(mark=float(applied.mark)), "broker-1", tuple)
    assert (reply.revision, reply.buffers, body) == (1, (), [])


def test_a_broker_that_restarts_goes_on_and_a_new_launch_goes_by_its_file(
    topology: Topology,
) -> None:
    applying = Applying(topology, begin(topology), lambda _: None)
    told(applying, "q", TEXT.replace("4", "6"))
    assert running(topology)[0].stages[0].slots == 6
    begin(topology)
    again, applied = running(topology)
    assert (again.stages[0].slots, applied.revision) == (4, 3)
