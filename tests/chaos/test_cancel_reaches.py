"""A cancel reaches whatever a rollout is at, and its receipt says what that had spent."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine import Client, Receipt, Task

from ..sandbox_kit import IMAGE, need
from .chaoskinds.stoppable import notes
from .conftest import Start
from .scene import Scene, until
from .test_cancel import STAGES as RUN_AND_EVAL

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

STAGES = [{"name": "init", "slots": 4}, {"name": "run", "slots": 4}, {"name": "eval", "slots": 4}]
GRACE = {"heartbeat_s": 0.4, "lease_s": 4.0, "cancel_grace_s": 2.0, "drain_s": 5}
SIMULATED: dict[str, Any] = {
    "router": {},
    "backends": [
        {
            "name": "sim",
            "kind": "simulator",
            "capacity": 4,
            "options": {"script": "filler", "speed": 1.0},
        }
    ],
}
FIRST_TOKENS = 8
SAMPLED_BY_A_PROBE = 4  # at most, by the router, before a backend is used
GONE_S = 10.0  # a second on a machine that has time for it


class Cancelled:
    """Rollouts that stay in one stage, their cancel, and what they noted themselves."""

    def __init__(self, scene: Scene, stage: str, does: str, **payload: Any) -> None:
        self.scene = scene
        self.stage = stage
        self.notes = scene.directory / f"notes-{stage}-{does}"
        fields = {"notes": str(self.notes), "stage": stage, "does": does, **payload}
        self._task = Task(f"{stage}-{does}", "chaoskinds.stoppable", fields)
        self.receipts: dict[str, Receipt] = {}

    def stay(self, client: Client, count: int) -> tuple[str, ...]:
        """Submit rollouts and wait until all of them are where they will be cancelled."""
        names = client.submit(self._task, count)
        until(lambda: len(notes(self.notes, "is there")) == count, f"{count} in {self.stage}")
        return names

    def cancel(self, client: Client, names: tuple[str, ...], running: int) -> float:
        """Cancel rollouts of which so many run; return when, and check the receipts' sums."""
        began = time.monotonic()
        answer = client.cancel(names)
        ended = time.monotonic()
        assert (answer.ended, answer.unknown) == ((), ())
        self.receipts = {receipt.rollout_id: receipt for receipt in answer.receipts}
        assert self.receipts.keys() == set(names)
        stopped = {note["rollout_id"]: note for note in notes(self.notes, "was stopped")}
        assert len(stopped) == running, "every handler was stopped before the answer"
        begun = {note["rollout_id"]: note for note in notes(self.notes, "begins", self.stage)}
        for name, note in stopped.items():
            receipt = self.receipts[name]
            assert (receipt.stage, receipt.running) == (self.stage, True)
            assert receipt.usage.turns == note["turns"]
            assert receipt.usage.tokens >= note["tokens"]
            assert began <= note["at"] <= ended
            assert note["at"] - begun[name]["at"] <= receipt.usage.seconds
            assert receipt.usage.seconds <= ended - begun[name]["at"] + 1.0
        return began


def test_work_that_waits_never_starts(start: Start) -> None:
    scene = start(stages=STAGES)
    with scene.client() as client:
        case = Cancelled(scene, "init", "sleep")
        names = client.submit(case._task, 10)
        until(lambda: len(notes(case.notes, "is there")) == 4, "all slots in use")
        begun = {note["rollout_id"] for note in notes(case.notes, "begins")}
        queued = [name for name in names if name not in begun]
        answer = client.cancel(queued)
        assert {receipt.rollout_id for receipt in answer.receipts} == set(queued)
        assert {(receipt.stage, receipt.running) for receipt in answer.receipts} == {("", False)}
        assert {receipt.usage.tokens for receipt in answer.receipts} == {0}
        assert client.cancel(everything=True).receipts
        outcomes = {rollout.rollout_id: rollout.outcome for rollout in client.rollouts()}
    assert outcomes == dict.fromkeys(names, "cancelled")
    assert {note["rollout_id"] for note in notes(case.notes, "begins")} == begun


@pytest.mark.parametrize("stage", ["init", "run", "eval"])
def test_each_stage_is_stopped_where_it_is(start: Start, stage: str) -> None:
    scene = start(stages=STAGES, timeouts=GRACE)
    with scene.client() as client:
        case = Cancelled(scene, stage, "sleep")
        case.cancel(client, case.stay(client, 4), running=4)
        assert [each.usage.tokens for each in case.receipts.values()] == [64] * 4
        rollouts = list(client.rollouts())
        assert [(each.outcome, each.reward) for each in rollouts] == [("cancelled", None)] * 4
        assert {each.rollout_id: each.receipt for each in rollouts} == case.receipts
        before = STAGES.index({"name": stage, "slots": 4})
        assert [len(each.timings) for each in rollouts] == [before] * 4
        assert not notes(case.notes, "begins", "eval") or stage == "eval"
        assert _outcomes_of(client, scene, 8) == ["completed"] * 8, "its slots are free again"


def test_generations_are_aborted_on_the_backend_and_their_tokens_are_counted(
    start: Start, tell: Callable[[str], None]
) -> None:
    """Six rollouts generate: four on the backend, two in the router's queue for it."""
    stages = [{"name": "run", "slots": 6}, {"name": "eval"}]
    scene = start(stages=stages, timeouts=GRACE, **SIMULATED)
    with scene.client() as client:
        case = Cancelled(scene, "run", "sample", first_tokens=FIRST_TOKENS)
        names = client.submit(case._task, 6)
        until(lambda: len(notes(case.notes, "is there")) == 6, "six that sample on")
        until(lambda: _figure(client, "router", "waiting") == 2, "two that wait for a place")
        until(lambda: _figure(client, "sim-0", "running") == 4, "four on the backend")
        answer_tokens = _figure(client, "sim-0", "tokens")
        began = case.cancel(client, names, running=6)
        took_ms = 1e3 * (time.monotonic() - began)
        until(lambda: _figure(client, "sim-0", "running") == 0, "an idle backend")
        for left in ("running", "waiting", "sessions"):
            until(lambda left=left: _figure(client, "router", left) == 0, f"none {left}")
        sampled = _figure(client, "sim-0", "tokens")
        counted = sum(receipt.usage.tokens for receipt in case.receipts.values())
        assert counted >= answer_tokens - SAMPLED_BY_A_PROBE
        assert 0 <= sampled - counted <= SAMPLED_BY_A_PROBE, "every token is in a receipt"
        assert {receipt.usage.turns for receipt in case.receipts.values()} == {1}
        each = sorted(receipt.usage.tokens for receipt in case.receipts.values())
        assert each[0] >= FIRST_TOKENS
        assert each[2] > FIRST_TOKENS, "of those on the backend, the generation that was cut counts"
        assert {rollout.outcome for rollout in client.rollouts()} == {"cancelled"}
        case.notes.unlink()
        short = Cancelled(scene, "run", "sample", first_tokens=5, then_tokens=7)
        client.submit(short._task, 2)
        assert {rollout.outcome for rollout in client.rollouts()} == {"completed"}
        total = sampled + 2 * (5 + 7)
        until(lambda: _figure(client, "sim-0", "tokens") >= total, "figures after them")
        assert _figure(client, "sim-0", "tokens") == total, "nothing else was sampled since"
    tell(f"cancel of 6 generations answered after {took_ms:.0f} ms, {counted} tokens in receipts")


@pytest.fixture(params=["bubblewrap", pytest.param("apptainer", marks=pytest.mark.apptainer)])
def sandboxes(request: pytest.FixtureRequest) -> dict[str, Any]:
    need(request.param)
    images = {"base": os.environ[IMAGE]} if request.param == "apptainer" else {}
    return {"provider": request.param, "images": images}


@pytest.mark.parametrize(
    ("stage", "does", "pinned"),
    [("run", "shell", False), ("run", "shell", True), ("init", "shell", False),
     ("eval", "exec", False)],
)  # fmt: skip
def test_every_process_of_a_running_command_is_gone(
    start: Start,
    sandboxes: dict[str, Any],
    tell: Callable[[str], None],
    stage: str,
    does: str,
    pinned: bool,
) -> None:
    scene = start(stages=STAGES, timeouts=GRACE, sandboxes=sandboxes)
    mark = f"47{os.getpid() % 10_000:04}.{time.monotonic_ns() % 1_000_000:06}"
    with scene.client() as client:
        case = Cancelled(scene, stage, does, mark=mark, pinned=pinned)
        names = case.stay(client, 3)
        each = 5 if does == "shell" else 2
        until(lambda: len(_sleeps(mark)) == 3 * each, f"{each} processes of each command")
        began = case.cancel(client, names, running=3)
        if does == "shell" and not pinned:
            assert not _sleeps(mark), "the handler waited for its sandbox's end before the answer"
        until(lambda: not _sleeps(mark), "the end of every process", GONE_S)
        gone_s = time.monotonic() - began
        assert {rollout.outcome for rollout in client.rollouts()} == {"cancelled"}
    where = f"{sandboxes['provider']}, {stage}{', pinned' if pinned else ''}"
    tell(f"cancel of 3 commands ({where}): no process of theirs after {gone_s:.2f} s")


def test_a_handler_that_does_not_let_itself_be_stopped_is_ended_after_its_grace(
    start: Start,
) -> None:
    scene = start(stages=RUN_AND_EVAL, timeouts={"cancel_grace_s": 0.5, "drain_s": 1})
    gate = scene.directory / "gate"
    with scene.client() as client:
        case = Cancelled(scene, "run", "swallow")
        [stubborn] = case.stay(client, 1)
        others = client.submit(scene.task("other", gate=str(gate)), 3)
        host = scene.host("run-0")
        until(lambda: client.status()["stages"][0]["leased"] == 4, "all of them to run")
        answer = client.cancel([stubborn])
        [receipt] = answer.receipts
        assert (receipt.running, receipt.usage.tokens) == (True, 0)
        until(lambda: scene.host("run-0") != host, "a new host")
        gate.touch()
        found = {rollout.rollout_id: rollout for rollout in client.rollouts()}
    assert found[stubborn].outcome == "cancelled"
    assert {found[name].outcome for name in others} == {"completed"}
    assert not [failure for name in others for failure in found[name].failures]


def test_a_worker_killed_in_the_middle_of_a_cancel_ends_it(start: Start) -> None:
    """The answer comes though nobody is left to say what was spent, and nothing is started over."""
    scene = start(stages=STAGES, timeouts=GRACE)
    with scene.client() as client, ThreadPoolExecutor(1) as pool:
        case = Cancelled(scene, "run", "sleep")
        names = case.stay(client, 4)
        guardian = scene.node("run-0")
        for pid in (guardian, scene.host("run-0")):
            os.kill(pid, signal.SIGSTOP)
        asked = pool.submit(_cancel_of, scene, client.client_id, names)
        until(lambda: client.status()["stages"][1]["stopping"] == 4, "four that stop")
        assert not asked.done(), "nobody has stopped anything yet"
        os.kill(guardian, signal.SIGKILL)
        receipts = asked.result(60.0).receipts
        assert {receipt.rollout_id for receipt in receipts} == set(names)
        assert {(each.running, each.usage.tokens) for each in receipts} == {(True, 0)}
        assert {rollout.outcome for rollout in client.rollouts()} == {"cancelled"}
        assert len(notes(case.notes, "begins", "run")) == 4


def _cancel_of(scene: Scene, client_id: str, names: tuple[str, ...]) -> Any:
    with scene.client("operator") as operator:
        return operator.cancel(names, client_id=client_id)


def _outcomes_of(client: Client, scene: Scene, count: int) -> list[str]:
    fields = {"notes": str(scene.directory / "after")}
    client.submit(Task("after", "chaoskinds.stoppable", fields), count)
    return [rollout.outcome for rollout in client.rollouts()]


def _figure(client: Client, node: str, name: str) -> float:
    nodes = {each["node"]: each["figures"] for each in client.status()["nodes"]}
    return float(nodes.get(node, {}).get(name, -1.0))


def _sleeps(mark: str) -> list[int]:
    """Return the processes of this machine, in whatever namespace, that sleep for `mark`."""
    return list(_with_argument(mark))


def _with_argument(mark: str) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if arguments[:2] == [b"sleep", mark.encode()]:
            yield int(path.parent.name)
