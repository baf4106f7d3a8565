"""What a cancel is answered with: twice, too late, too early, of the unknown, of somebody else's.

docs/protocol.md has these answers as a table; here they are given by a real broker to raw messages.
"""

import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..raw_trainer import Message, RawTrainer
from .chaoskinds.stoppable import notes
from .scene import Scene, hit, running, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

STAGES = [{"name": "run", "slots": 8}, {"name": "eval", "slots": 8}]
TIMES = {"heartbeat_s": 0.4, "lease_s": 2.0, "cancel_grace_s": 8.0, "drain_s": 2}
RETENTION_S = 2.0
CLEAN_S = 1.5
COUNT = itertools.count(1)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        options = {"timeouts": TIMES, "limits": {"retention_s": RETENTION_S}}
        with running(Path(directory), stages=STAGES, **options) as scene:
            yield scene


@pytest.fixture
def trainer(scene: Scene) -> Iterator[RawTrainer]:
    with connected(scene, f"trainer-{next(COUNT)}") as raw:
        raw.hello()
        yield raw


def connected(scene: Scene, client_id: str) -> RawTrainer:
    return RawTrainer(scene.directory / "run", client_id)


class Case:
    """One trainer's rollouts that stay in run."""

    def __init__(self, scene: Scene, raw: RawTrainer, does: str, count: int = 1) -> None:
        self.notes = scene.directory / f"notes-{raw.client_id}"
        self.names = [f"{raw.client_id}-{number}" for number in range(count)]
        payload = {"notes": str(self.notes), "stage": "run", "does": does, "clean_s": CLEAN_S}
        raw.submit(f"s-{raw.client_id}", self.names, "chaoskinds.stoppable", payload)

    def until(self, event: str) -> None:
        """Wait until every rollout has noted an event."""
        until(lambda: len(notes(self.notes, event)) >= len(self.names), event)


def cancel(raw: RawTrainer, cancel_id: str, names: list[str], **more: Any) -> None:
    raw.send("cancel", {"cancel_id": cancel_id, "rollout_ids": names, **more})


def told(answer: Message) -> tuple[str, dict[str, int], list[str], list[str]]:
    """Return the id, the receipts' tokens by rollout, what had ended, and what is unknown."""
    tokens = {each["rollout_id"]: each["usage"]["tokens"] for each in answer["receipts"]}
    assert len(tokens) == len(answer["receipts"])
    return answer["cancel_id"], tokens, answer["ended"], answer["unknown"]


def ended(raw: RawTrainer, count: int = 1) -> list[str]:
    """Take results and acknowledge them; nothing is owed after that."""
    results = [raw.receive("result") for _ in range(count)]
    for result in results:
        assert (result["reward"] is None) == (result["outcome"] == "cancelled")
        raw.ack(result["seq"])
    assert raw.unacked(1) == 0
    return [result["outcome"] for result in results]


def nothing_more(raw: RawTrainer, *kinds: str) -> None:
    """Make sure that everything the broker has to say was said: a pong comes last."""
    raw.unacked(99)
    assert not [each.kind for each in raw._came if each.kind in kinds]


def test_the_same_cancel_twice_has_one_answer(scene: Scene, trainer: RawTrainer) -> None:
    case = Case(scene, trainer, "tidy", 2)
    case.until("is there")
    cancel(trainer, "c", case.names)
    case.until("cleans up")
    cancel(trainer, "c", case.names)
    assert told(trainer.receive("cancelled")) == ("c", dict.fromkeys(case.names, 33), [], [])
    assert ended(trainer, 2) == ["cancelled"] * 2
    nothing_more(trainer, "cancelled", "result")
    cleanings = notes(case.notes, "cleans up")
    assert len(cleanings) == 2, "the second cancel did not cut the cleaning up short"


def test_two_cancels_of_one_rollout_are_both_answered_when_it_is_over(
    scene: Scene, trainer: RawTrainer
) -> None:
    case = Case(scene, trainer, "tidy")
    case.until("is there")
    cancel(trainer, "c-1", case.names)
    case.until("cleans up")
    cancel(trainer, "c-2", case.names)
    answers = [told(trainer.receive("cancelled")) for _ in range(2)]
    receipts = dict.fromkeys(case.names, 33)
    assert sorted(answers) == [("c-1", receipts, [], []), ("c-2", receipts, [], [])]
    assert ended(trainer) == ["cancelled"]


def test_a_cancel_repeated_after_its_answer_finds_everything_ended(
    scene: Scene, trainer: RawTrainer
) -> None:
    case = Case(scene, trainer, "sleep")
    case.until("is there")
    for cancel_id, receipts, over in (
        ("c", dict.fromkeys(case.names, 64), []),
        ("c", {}, case.names),
        ("d", {}, case.names),
    ):
        cancel(trainer, cancel_id, case.names)
        assert told(trainer.receive("cancelled")) == (cancel_id, receipts, over, [])
    assert ended(trainer) == ["cancelled"]
    cancel(trainer, "e", case.names)
    assert told(trainer.receive("cancelled"))[2] == case.names, "known while it is retained"


def test_another_connection_of_the_client_may_repeat_it_and_is_answered(
    scene: Scene, trainer: RawTrainer
) -> None:
    case = Case(scene, trainer, "tidy")
    case.until("is there")
    cancel(trainer, "c", case.names)
    case.until("cleans up")
    with connected(scene, trainer.client_id) as again:
        again.hello()
        assert trainer.receive("replaced")["client_id"] == trainer.client_id
        cancel(again, "c", case.names)
        assert told(again.receive("cancelled")) == ("c", dict.fromkeys(case.names, 33), [], [])
        assert ended(again) == ["cancelled"]
    assert not [each.kind for each in trainer._came if each.kind == "cancelled"]


def test_another_clients_rollouts_are_unknown_unless_it_is_named(
    scene: Scene, trainer: RawTrainer
) -> None:
    case = Case(scene, trainer, "sleep", 2)
    case.until("is there")
    group = f"group of s-{trainer.client_id}"
    with connected(scene, "operator") as operator:
        operator.hello()
        cancel(operator, "mine", case.names, group_ids=[group])
        assert told(operator.receive("cancelled")) == ("mine", {}, [], [*case.names, group])
        cancel(operator, "all of mine", [], everything=True)
        assert told(operator.receive("cancelled")) == ("all of mine", {}, [], [])
        first, second = case.names
        cancel(operator, "theirs", [first], client_id=trainer.client_id)
        assert told(operator.receive("cancelled")) == ("theirs", {first: 64}, [], [])
        nothing_more(operator, "result")
        assert trainer.receive("result")["rollout_id"] == first
        nothing_more(trainer, "cancelled")
        cancel(operator, "the rest", [], everything=True, client_id=trainer.client_id)
        assert told(operator.receive("cancelled")) == ("the rest", {second: 64}, [], [])
        cancel(operator, "of nobody", ["x"], everything=True, client_id="nobody")
        assert told(operator.receive("cancelled")) == ("of nobody", {}, [], ["x"])
    result = trainer.receive("result")
    assert (result["rollout_id"], result["outcome"]) == (second, "cancelled")
    trainer.ack(result["seq"] - 1, result["seq"])
    assert trainer.unacked(2) == 0


def test_the_unknown_and_nothing_at_all_are_answered_at_once(trainer: RawTrainer) -> None:
    cancel(trainer, "c", ["x", "x"], group_ids=["g"])
    assert told(trainer.receive("cancelled")) == ("c", {}, [], ["x", "g"])
    trainer.send("cancel", {"cancel_id": "d"})
    assert told(trainer.receive("cancelled")) == ("d", {}, [], [])


def test_before_hello_a_cancel_is_a_problem(scene: Scene) -> None:
    with connected(scene, "hasty") as raw:
        cancel(raw, "c", ["x"])
        assert raw.receive("problem")["code"] == "hello_first"


def test_what_waits_is_over_at_once_and_after_its_retention_unknown(
    scene: Scene, trainer: RawTrainer
) -> None:
    case = Case(scene, trainer, "sleep", 10)
    until(lambda: len(notes(case.notes, "is there")) == 8, "all slots in use")
    begun = {note["rollout_id"] for note in notes(case.notes, "begins")}
    waiting = [name for name in case.names if name not in begun]
    cancel(trainer, "c", waiting)
    assert told(trainer.receive("cancelled")) == ("c", dict.fromkeys(waiting, 0), [], [])
    cancel(trainer, "d", [], everything=True)
    assert told(trainer.receive("cancelled")) == ("d", dict.fromkeys(sorted(begun), 64), [], [])
    assert ended(trainer, 10) == ["cancelled"] * 10

    def answer() -> Message:
        cancel(trainer, "e", case.names)
        return trainer.receive("cancelled")

    until(lambda: answer()["unknown"] == case.names, "the end of their retention")
    assert len(notes(case.notes, "begins")) == 8


def test_a_handler_that_finishes_all_the_same_is_cancelled_with_what_it_spent(
    scene: Scene, trainer: RawTrainer
) -> None:
    case = Case(scene, trainer, "finish", 2)
    case.until("is there")
    cancel(trainer, "c", case.names)
    assert told(trainer.receive("cancelled")) == ("c", dict.fromkeys(case.names, 44), [], [])
    case.until("left")
    assert not notes(case.notes, "was stopped")
    assert not notes(case.notes, "begins", "eval"), "its output went nowhere"
    assert ended(trainer, 2) == ["cancelled"] * 2


def test_a_result_that_comes_after_the_answer_changes_nothing(
    scene: Scene, trainer: RawTrainer
) -> None:
    """The worker stands still for longer than it may; then its handlers finish, and say so."""
    gate, counts = scene.directory / "gate", scene.directory / "late"
    names = [f"{trainer.client_id}-{number}" for number in range(4)]
    payload = {"gate": str(gate), "counts": str(counts)}
    trainer.submit("s", names, "chaoskinds.sleeper", payload)
    until(lambda: counts.exists() and counts.read_text().count("run ") == 4, "four that run")
    guardian, host = scene.node("run-0"), scene.host("run-0")
    try:
        for pid in (guardian, host):
            os.kill(pid, signal.SIGSTOP)
        cancel(trainer, "c", names)
        answer = trainer.receive("cancelled", patience_s=60.0)
        assert told(answer) == ("c", dict.fromkeys(names, 0), [], [])
        assert ended(trainer, 4) == ["cancelled"] * 4
        before = trainer.status()["counts"].get("late", 0)
        gate.touch()
        os.kill(host, signal.SIGCONT)
        until(lambda: trainer.status()["counts"].get("late", 0) >= before + 4, "four late results")
    finally:
        for pid in (guardian, host):
            hit(pid, signal.SIGCONT)
    nothing_more(trainer, "result", "cancelled")
    cancel(trainer, "d", names)
    assert told(trainer.receive("cancelled"))[1:] in [({}, names, []), ({}, [], names)]
    assert "left" not in counts.read_text(), "the handlers ended by themselves"
    assert "eval" not in counts.read_text()
