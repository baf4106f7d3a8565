"""One weight update, without sockets and clocks."""

from typing import Any

import pytest

from nodes.inference.events import TellStep
from nodes.inference.messages import Pause, Resume, UpdateStep, UpdateWeights
from nodes.inference.updates import BACK, Deadlines, Update, Weights

NEW, OLD = Weights(2, "/w/2", "u"), Weights(1, "/w/1", "before")
DEADLINES = Deadlines(load_s=10.0, step_s=5.0, repeat_s=2.0)


class Fleet:
    """Backends that answer what they are told, except where a test says otherwise."""

    def __init__(self, former: Weights | None = OLD, mode: Any = "keep") -> None:
        self.versions = {"a": 1, "b": 1}
        self.paused: set[str] = set()
        self.errors: dict[tuple[str, str, str], str] = {}
        self.silent: set[tuple[str, str]] = set()
        self.told: list[tuple[str, str]] = []
        self.now = 0.0
        self.update = Update(NEW, mode, former, self.versions, DEADLINES)

    def run(self) -> Update:
        self.answer_all(self.update.begin(self.now))
        return self.update

    def tick(self, now: float) -> None:
        self.now = now
        self.answer_all(self.update.tick(now))

    def answer_all(self, told: list[TellStep]) -> None:
        waiting = list(told)
        while waiting:
            each = waiting.pop(0)
            self.told.append((each.backend, each.message.kind))
            if (each.backend, each.message.kind) not in self.silent:
                step = self.step(each.backend, each.message)
                waiting += self.update.answered(each.backend, step, self.now)

    def step(self, name: str, message: Pause | UpdateWeights | Resume) -> UpdateStep:
        error = self.errors.get((name, message.kind, message.update_id), "")
        if not error:
            match message:
                case Pause():
                    self.paused.add(name)
                case UpdateWeights():
                    assert name in self.paused
                    self.versions[name] = message.policy_version
                case Resume():
                    self.paused.discard(name)
        return UpdateStep(message.update_id, message.kind, self.versions[name], error)


def stopping() -> Fleet:
    fleet = Fleet()
    fleet.update = Update(NEW, "keep", OLD, fleet.versions, DEADLINES, stops=True)
    assert fleet.run().phase == "paused"
    assert {kind for _, kind in fleet.told} == {"pause"}
    return fleet


def test_weights_that_the_trainer_puts_there_are_waited_for_while_all_are_paused() -> None:
    fleet = stopping()
    fleet.tick(5.0)
    assert fleet.update.phase == "paused"
    fleet.answer_all(fleet.update.put(6.0))
    assert (fleet.update.phase, fleet.update.holds) == ("done", True)
    assert fleet.versions == {"a": 2, "b": 2}
    assert fleet.update.put(7.0) == []


@pytest.mark.parametrize("error", ["no link", ""])
def test_weights_that_do_not_come_leave_everything_as_it_was(error: str) -> None:
    fleet = stopping()
    if error:
        fleet.answer_all(fleet.update.put(5.0, error))
    else:
        fleet.tick(10.0)
    assert (fleet.update.phase, fleet.update.holds) == ("done", False)
    assert (fleet.versions, fleet.paused) == ({"a": 1, "b": 1}, set())
    failed = {member.failed for member in fleet.update.members.values()}
    assert failed == {error or "the weights were not put there in time"}


def test_a_pause_that_loses_every_backend_ends() -> None:
    fleet = stopping()
    for name in ("a", "b"):
        fleet.answer_all(fleet.update.gone(name, 1.0))
    assert (fleet.update.phase, fleet.update.holds) == ("done", False)


def test_every_backend_pauses_before_any_loads_and_loads_before_any_resumes() -> None:
    fleet = Fleet()
    update = fleet.run()
    assert [kind for _, kind in fleet.told] == ["pause"] * 2 + ["update_weights"] * 2 + [
        "resume"
    ] * 2
    assert (update.phase, update.holds) == ("done", True)
    assert fleet.versions == {"a": 2, "b": 2}


def test_a_backend_that_cannot_pause_ends_the_update_and_everybody_goes_on() -> None:
    fleet = Fleet()
    fleet.errors["b", "pause", "u"] = "busy"
    update = fleet.run()
    assert (update.phase, update.holds) == ("done", False)
    assert fleet.versions == {"a": 1, "b": 1}
    assert not fleet.paused
    assert update.members["b"].failed == "pause: busy"


def test_those_that_have_loaded_go_back_if_one_cannot() -> None:
    fleet = Fleet()
    fleet.errors["b", "update_weights", "u"] = "no such path"
    update = fleet.run()
    assert not update.holds
    assert fleet.versions == {"a": 1, "b": 1}
    assert not fleet.paused
    assert update.members["a"].policy_version == 1


def test_without_former_weights_the_new_ones_stand_and_the_failed_backend_is_named() -> None:
    fleet = Fleet(former=None)
    fleet.errors["b", "update_weights", "u"] = "no such path"
    update = fleet.run()
    assert update.holds
    assert fleet.versions == {"a": 2, "b": 1}
    assert update.members["b"].failed == "update_weights: no such path"
    assert update.members["b"].resumed


def test_weights_that_the_trainer_put_there_itself_cannot_be_gone_back_to() -> None:
    fleet = Fleet(former=Weights(1, "", "before"))
    fleet.errors["b", "update_weights", "u"] = "no"
    assert fleet.run().holds


def test_if_nobody_could_load_nothing_has_changed() -> None:
    fleet = Fleet(former=None)
    for name in "ab":
        fleet.errors[name, "update_weights", "u"] = "no such path"
    update = fleet.run()
    assert not update.holds
    assert fleet.versions == {"a": 1, "b": 1}
    assert not fleet.paused


def test_a_backend_that_cannot_go_back_is_named_with_what_it_holds() -> None:
    fleet = Fleet()
    fleet.errors["b", "update_weights", "u"] = "no"
    fleet.errors["a", "update_weights", "u" + BACK] = "gone too"
    update = fleet.run()
    assert (update.phase, update.holds) == ("done", False)
    assert update.members["a"].policy_version == 2
    assert update.members["a"].failed == "update_weights: gone too"


def test_a_step_without_an_answer_is_asked_for_again_until_its_deadline() -> None:
    fleet = Fleet()
    fleet.silent.add(("b", "update_weights"))
    update = fleet.run()
    assert update.phase == "loading"
    fleet.tick(1.0)
    assert fleet.told.count(("b", "update_weights")) == 1
    fleet.tick(2.5)
    assert fleet.told.count(("b", "update_weights")) == 2
    fleet.tick(10.5)
    assert (update.phase, update.holds) == ("done", False)
    assert update.members["b"].failed == "update_weights: no answer in time"


def test_a_backend_that_is_lost_is_no_part_of_the_update() -> None:
    fleet = Fleet()
    fleet.silent.add(("b", "update_weights"))
    update = fleet.run()
    fleet.answer_all(update.gone("b", 0.0))
    assert (update.phase, update.holds) == ("done", True)
    assert set(update.members) == {"a"}


def test_an_update_that_loses_every_backend_does_not_hold() -> None:
    fleet = Fleet()
    fleet.silent |= {("a", "pause"), ("b", "pause")}
    update = fleet.run()
    for name in "ab":
        fleet.answer_all(update.gone(name, 0.0))
    assert (update.phase, update.holds) == ("done", False)


def test_an_answer_to_another_step_or_update_is_late() -> None:
    fleet = Fleet()
    fleet.silent.add(("b", "pause"))
    update = fleet.run()
    assert update.answered("b", UpdateStep("other", "pause", 1), 0.0) == []
    assert update.answered("b", UpdateStep("u", "resume", 1), 0.0) == []
    assert update.answered("stranger", UpdateStep("u", "pause", 1), 0.0) == []
    assert update.phase == "pausing"


@pytest.mark.parametrize("mode", ["keep", "wait", "abort"])
def test_the_mode_reaches_every_backend(mode: Any) -> None:
    told = Fleet(mode=mode).update.begin(0.0)
    assert [each.message for each in told] == [Pause("u", mode)] * 2
