"""The whole life of rollouts through a trainer that knows docs/protocol.md and nothing else."""

import ast
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .. import raw_trainer
from ..raw_trainer import RawTrainer
from ..topology_kit import ECHO, QUICK, Site, running_topology

SLOW = """\
import asyncio
from pathlib import Path

from nodes.tasks import Output


async def init(context):
    return Output()


async def run(context):
    context.spent(turns=2, tokens=64)
    Path(context.task.payload["spent"]).touch()
    await asyncio.sleep(3600)


async def eval(context):
    return Output(reward=0.0)
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="rq", dir="/tmp") as directory:
        kinds = {"echo": ECHO, "slow": SLOW}
        with running_topology(Path(directory), QUICK, kinds) as running:
            yield running


@pytest.fixture
def trainer(site: Site, request: pytest.FixtureRequest) -> Iterator[RawTrainer]:
    with RawTrainer(site.topology.run_dir, request.node.name) as raw:
        yield raw


def running(raw: RawTrainer, stage: str) -> int:
    found = next(row for row in raw.status()["stages"] if row["stage"] == stage)
    return int(found["leased"])


def test_the_trainer_knows_nothing_of_rollmq() -> None:
    tree = ast.parse(Path(raw_trainer.__file__).read_text())
    roots = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    roots |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {root for root in roots if root.split(".")[0] in {"engine", "nodes", "numpy"}}


def test_a_rollout_is_submitted_run_delivered_and_acknowledged(trainer: RawTrainer) -> None:
    welcome = trainer.hello()
    assert welcome["stages"] == ["init", "run", "eval"]
    assert welcome["unacked"] == 0
    assert trainer.submit("s-1", ["life-1"], "kinds.echo", {"question": "?"})["repeated"] == []

    result = trainer.receive("result")

    assert (result["seq"], result["rollout_id"]) == (welcome["acked_through"] + 1, "life-1")
    assert (result["outcome"], result["reward"], result["trainable"]) == ("completed", 1.0, True)
    assert result["rewards"] == {"echo": 1.0}
    assert result["group_size"] == 1
    assert [timing["stage"] for timing in result["timings"]] == ["init", "run", "eval"]
    assert result.buffers["init"] == {"payload": {"question": "?"}}
    assert result.buffers["token_ids"] == tuple(range(8))
    assert result.buffers["loss_mask"] == (0, 0, 0, 0, 1, 1, 1, 1)
    assert result.buffers["logprobs"] == tuple(-1.0 + 0.125 * n for n in range(8))
    assert result.buffers.get("policy_spans", ()) == ()
    assert trainer.unacked(1) == 1
    trainer.ack(result["seq"])
    assert trainer.unacked(2) == 0


def test_a_repeated_submit_is_the_same_rollout(trainer: RawTrainer) -> None:
    trainer.hello()
    ids = ["again-1", "again-2"]
    trainer.submit("s-1", ids, "kinds.echo", {})
    seqs = [trainer.receive("result")["seq"] for _ in ids]
    assert trainer.submit("s-1", ids, "kinds.echo", {})["repeated"] == ids
    trainer.ack(*seqs)
    assert trainer.unacked(1) == 0
    assert trainer.submit("s-1", ids, "kinds.echo", {})["repeated"] == ids
    assert trainer.unacked(2) == 0


def test_what_is_not_acknowledged_comes_again_after_a_reconnect(site: Site) -> None:
    with RawTrainer(site.topology.run_dir, "again") as first:
        first.hello()
        first.submit("s-1", ["back-1", "back-2", "back-3"], "kinds.echo", {})
        came = [first.receive("result") for _ in range(3)]
        assert [each["seq"] for each in came] == [1, 2, 3]
        first.ack(2)
        assert first.unacked(1) == 2
    with RawTrainer(site.topology.run_dir, "again") as second:
        welcome = second.hello(window=1)
        assert (welcome["unacked"], welcome["acked_through"]) == (2, 0)
        repeat = second.receive("result")
        assert repeat.header == came[0].header
        assert repeat.buffers == came[0].buffers
        second.ack(1, window=1)
        assert second.receive("result").header == came[2].header
        second.ack(3)
        assert second.unacked(2) == 0


def test_a_running_rollout_is_cancelled_with_a_receipt(
    trainer: RawTrainer, site: Site, tmp_path: Path
) -> None:
    spent = tmp_path / "spent"
    trainer.hello()
    trainer.submit("s-1", ["slow-1"], "kinds.slow", {"spent": str(spent)}, group_id="slow")
    site.until(spent.exists)
    assert running(trainer, "run") == 1

    trainer.send("cancel", {"cancel_id": "c-1", "group_ids": ["slow", "nobody's"]})
    answer = trainer.receive("cancelled")

    assert answer["cancel_id"] == "c-1"
    assert answer["unknown"] == ["nobody's"]
    assert answer["ended"] == []
    (receipt,) = answer["receipts"]
    assert (receipt["rollout_id"], receipt["stage"], receipt["running"]) == ("slow-1", "run", True)
    assert (receipt["usage"]["turns"], receipt["usage"]["tokens"]) == (2, 64)
    result = trainer.receive("result")
    assert (result["outcome"], result["reward"], result["trainable"]) == ("cancelled", None, False)
    assert result["receipt"] == receipt
    trainer.ack(result["seq"])
    assert trainer.unacked(1) == 0


def test_a_submit_is_refused_with_a_code(trainer: RawTrainer, site: Site) -> None:
    assert trainer.submit("s-0", ["no-1"], "kinds.echo", {})["code"] == "hello_first"
    trainer.hello()
    assert trainer.submit("s-1", ["no-1", "no-1"], "kinds.echo", {})["code"] == "invalid"
    many = [f"no-{number}" for number in range(site.topology.limits.group + 1)]
    assert trainer.submit("s-2", many, "kinds.echo", {})["code"] == "invalid"
    trainer.submit("s-3", ["no-1"], "kinds.echo", {}, group_id="a")
    trainer.ack(trainer.receive("result")["seq"])
    conflict = trainer.submit("s-4", ["no-1"], "kinds.echo", {}, group_id="b")
    assert conflict["code"] == "conflict"
    assert trainer.unacked(1) == 0


@pytest.mark.parametrize(
    ("frames", "field"),
    [
        ((b"rollmq/2 ping", b'{"nonce": 1}'), "version"),
        ((b"rollmq/1 work", b"{}"), "kind"),
        ((b"rollmq/1 ping",), "frames"),
        ((b"", b"rollmq/1 ping", b'{"nonce": 1}'), "version"),
        ((b"rollmq/1 ping", b"[]"), "header"),
        ((b"rollmq/1 ping", b'{"nonce": true}'), "nonce"),
        ((b"rollmq/1 ping", b'{"nonce": 1, "more": 2}'), "more"),
        ((b"rollmq/1 ping", b'{"nonce": 1}', b""), "buffers"),
        ((b"rollmq/1 ack", b'{"seqs": [[1, -2]], "window": 1}'), "seqs.0.1"),
    ],
)
def test_a_message_that_breaks_the_protocol_gets_a_problem(
    trainer: RawTrainer, frames: tuple[bytes, ...], field: str
) -> None:
    trainer.hello()
    trainer.send_frames(*frames)
    assert trainer.receive("problem")["field"] == field
    assert trainer.unacked(1) == 0


def test_what_needs_a_hello_says_so(trainer: RawTrainer) -> None:
    trainer.ack(1)
    problem = trainer.receive("problem")
    assert (problem["code"], problem["message"]) == ("hello_first", "say hello first")
    trainer.send("ping", {"nonce": 1})
    assert trainer.receive("problem").header == problem.header
    assert trainer.status()["clients"] is not None


@pytest.mark.parametrize("seqs", [[[0, 2**63 - 1]], [[2**63 - 1, 0]], [[7, 9], [7, 9]], []])
def test_an_acknowledgement_of_nothing_has_no_effect(trainer: RawTrainer, seqs: Any) -> None:
    trainer.hello()
    trainer.send("ack", {"seqs": seqs, "window": 0})
    assert trainer.unacked(1) == 0


def test_a_second_connection_of_a_client_replaces_the_first(site: Site) -> None:
    with (
        RawTrainer(site.topology.run_dir, "twin") as first,
        RawTrainer(site.topology.run_dir, "twin") as second,
    ):
        first.hello()
        second.hello()
        assert first.receive("replaced")["client_id"] == "twin"
        assert first.submit("s-1", ["twin-1"], "kinds.echo", {})["code"] == "hello_first"
        assert second.submit("s-1", ["twin-1"], "kinds.echo", {})["repeated"] == []
        second.ack(second.receive("result")["seq"])
        second.send("goodbye", {})
        assert second.submit("s-2", ["twin-2"], "kinds.echo", {})["code"] == "hello_first"


def test_a_restarted_broker_is_known_by_its_id_and_owes_what_it_owed(
    trainer: RawTrainer, site: Site
) -> None:
    welcome = trainer.hello()
    trainer.submit("s-1", ["kept-1"], "kinds.echo", {})
    before = trainer.receive("result")
    pid = site.supervisor.pids["broker"]

    os.kill(pid, signal.SIGKILL)
    site.until(lambda: site.supervisor.pids["broker"] != pid)

    trainer.send("ping", {"nonce": 1})
    assert trainer.receive("problem")["message"] == "say hello first"
    again = trainer.hello()
    assert again["broker_id"] != welcome["broker_id"]
    assert again["unacked"] == 1
    after = trainer.receive("result")
    assert (after.header, after.buffers) == (before.header, before.buffers)
    trainer.ack(after["seq"])
    assert trainer.unacked(2) == 0
