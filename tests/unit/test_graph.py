"""Pictures of a topology."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.graph import ascii_graph, mermaid, svg
from engine.topology import Topology, load

Draw = Callable[[Topology], str]

ROOT = Path(__file__).parents[2]
SHARDED = """\
version: 1
name: sharded
insecure: true
hosts: {trainer: {address: 127.0.0.1}, sandboxes: {address: 127.0.0.2}}
stages:
  - {name: init, workers: {sandboxes: 4, trainer: 1}}
  - {name: run, workers: {trainer: 1}, slots: 128}
router: {}
backends: [{name: sim, kind: simulator}, {name: qwen, kind: vllm, count: 2}]
"""


@pytest.fixture
def default() -> Topology:
    return load(ROOT / "topology.yaml")


@pytest.fixture
def sharded(tmp_path: Path) -> Topology:
    (tmp_path / "t.yaml").write_text(SHARDED)
    return load(tmp_path / "t.yaml")


@pytest.fixture
def bare(tmp_path: Path) -> Topology:
    (tmp_path / "t.yaml").write_text("version: 1\nrun_dir: /tmp/r\nstages: [{name: only}]\n")
    return load(tmp_path / "t.yaml")


def test_the_ascii_graph_of_the_default_topology_fits_a_terminal(default: Topology) -> None:
    drawn = ascii_graph(default)
    assert drawn.isascii()
    assert max(len(line) for line in drawn.splitlines()) <= 100


def test_boxes_of_the_ascii_graph_are_closed(sharded: Topology) -> None:
    for line in ascii_graph(sharded).splitlines():
        if line.startswith("+"):
            assert line.endswith("+")
        if line.startswith("|"):
            assert line.endswith("|")


@pytest.mark.parametrize("draw", [ascii_graph, mermaid, svg])
def test_every_picture_names_processes_sockets_and_sizes(sharded: Topology, draw: Draw) -> None:
    drawn = draw(sharded)
    for word in ("trainer", "broker", "init", "run", "router", "sim", "qwen"):
        assert word in drawn
    for words in ("DEALER - ROUTER", "PUSH - PULL", "PUB - SUB", "5 workers x 64 slots"):
        assert words in drawn
    assert "1 worker x 128 slots" in drawn


def test_pictures_over_tcp_name_addresses_and_ports(sharded: Topology) -> None:
    assert "127.0.0.1:5570" in ascii_graph(sharded)
    assert "127.0.0.1:5581" in svg(sharded)


@pytest.mark.parametrize("draw", [ascii_graph, mermaid, svg])
def test_a_topology_without_router_and_backends_can_be_drawn(bare: Topology, draw: Draw) -> None:
    drawn = draw(bare)
    assert "only" in drawn
    assert "generate" not in drawn


def test_only_the_run_stage_is_joined_to_the_router(default: Topology) -> None:
    joined = [line for line in mermaid(default).splitlines() if line.endswith("| router")]
    assert [line.split()[0] for line in joined] == ["s1"]


def test_the_svg_is_well_formed_and_holds_everything_inside_its_frame(sharded: Topology) -> None:
    root = ET.fromstring(svg(sharded))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = [box for box in root.iter("{http://www.w3.org/2000/svg}rect") if "x" in box.attrib]
    assert len(boxes) == 1 + 1 + 2 + 1 + 2
    for box in boxes:
        assert float(box.attrib["x"]) + float(box.attrib["width"]) <= width
        assert float(box.attrib["y"]) + float(box.attrib["height"]) <= height


@pytest.mark.parametrize("draw", [ascii_graph, mermaid, svg])
def test_the_same_topology_gives_the_same_picture(default: Topology, draw: Draw) -> None:
    assert draw(default) == draw(default)
