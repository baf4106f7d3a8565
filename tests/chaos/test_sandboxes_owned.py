"""Whatever is killed, no sandbox outlives its owner for long, and none is taken early."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodes.sandboxes.places import base_dir, records_dir
from nodes.sandboxes.records import Record, read_records

from ..sandbox_kit import need
from .chaoskinds.executions import executions
from .scene import Scene, hit, is_alive, running, until

pytestmark = pytest.mark.chaos

STAGES = [
    {"name": "init", "workers": 2, "slots": 8},
    {"name": "run", "workers": 2, "slots": 8},
    {"name": "eval"},
]
MANY = 6


class Boxes:
    """The sandboxes of a scene, as its run directory and the machine tell of them."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.gate = scene.directory / "gate"
        self.records = records_dir(scene.directory / "run") / "local"
        self.base = base_dir(self.records)
        self._seen: dict[str, Record] = {}

    def up(self) -> list[Record]:
        """Return the sandboxes that have an owner and run."""
        found = [each for each in read_records(self.records) if each.pid and each.is_alive()]
        self._seen.update((each.name, each) for each in found)
        return [each for each in found if each.owner]

    def left(self) -> list[str]:
        """Return what is there of any sandbox that was ever seen."""
        self.up()
        found = [str(path) for path in self.records.glob("*.json")]
        found += [str(path) for path in self.base.glob("sb-*")]
        return found + [str(each.pid) for each in self._seen.values() if each.is_alive()]

    def task(self, name: str, **payload: Any) -> Any:
        """Return a task whose run waits for the gate."""
        return self.scene.task(name, "boxed", gate=str(self.gate), **payload)


@pytest.fixture
def place(short_path: Path) -> Path:
    need("bubblewrap")
    return short_path


@contextmanager
def boxes_in(place: Path, **sandboxes: Any) -> Iterator[Boxes]:
    options = {"provider": "bubblewrap", **sandboxes}
    with running(place, stages=STAGES, sandboxes=options) as scene:
        boxes = Boxes(scene)
        try:
            yield boxes
        finally:
            boxes.gate.touch()
    until(lambda: not boxes.left(), "nothing left after the end")
    assert not boxes.base.exists()


def test_a_pinned_sandbox_is_the_same_in_later_stages_and_goes_with_its_rollout(
    place: Path,
) -> None:
    with boxes_in(place) as boxes, boxes.scene.client("trainer") as client:
        client.submit_all(boxes.task(str(number)) for number in range(MANY))
        until(lambda: len(boxes.up()) == MANY, "all sandboxes")
        boxes.gate.touch()
        rewards = [rollout.reward for rollout in client.rollouts()]
        assert rewards == [1.0] * MANY
        until(lambda: not boxes.left(), "the end of all sandboxes", 10.0)


def test_an_unpinned_sandbox_ends_with_its_attempt(place: Path) -> None:
    with boxes_in(place) as boxes, boxes.scene.client("trainer") as client:
        client.submit(boxes.task("0", pinned=False))
        until(
            lambda: boxes.scene.counts.exists() and "run" in boxes.scene.counts.read_text(), "run"
        )
        until(lambda: not boxes.left(), "the end of its sandbox", 10.0)
        boxes.gate.touch()
        assert [rollout.outcome for rollout in client.rollouts()] == ["completed"]


def test_a_cancelled_rollout_that_waits_loses_its_sandbox(place: Path) -> None:
    with boxes_in(place) as boxes, boxes.scene.client("trainer") as client:
        client.submit_all(boxes.task(str(number)) for number in range(MANY))
        until(lambda: len(boxes.up()) == MANY, "all sandboxes")
        client.cancel(everything=True)
        until(lambda: not boxes.left(), "the end of all sandboxes", 10.0)


@pytest.mark.parametrize("victim", ["init host", "init guardian", "run host", "broker"])
def test_what_is_killed_and_started_again_costs_no_result_and_leaves_no_sandbox(
    place: Path, victim: str
) -> None:
    with boxes_in(place) as boxes, boxes.scene.client("trainer") as client:
        scene = boxes.scene
        client.submit_all(boxes.task(str(number)) for number in range(MANY))
        until(lambda: len(boxes.up()) == MANY, "all sandboxes")
        name = "broker" if victim == "broker" else f"{victim.split(maxsplit=1)[0]}-0"
        hit(scene.host(name) if "host" in victim else scene.node(name), signal.SIGKILL)
        boxes.gate.touch()
        rewards = [rollout.reward for rollout in client.rollouts()]
        assert rewards == [1.0] * MANY
        until(lambda: not boxes.left(), "the end of all sandboxes", 20.0)


def test_a_killed_worker_takes_what_its_attempts_had_started(place: Path) -> None:
    with boxes_in(place) as boxes, boxes.scene.client("trainer") as client:
        client.submit_all(boxes.task(str(number), stuck=True) for number in range(MANY))
        until(lambda: len(boxes.up()) == MANY, "all sandboxes")
        before = {record.name: record for record in boxes.up()}
        for name in ("init-0", "init-1"):
            hit(boxes.scene.host(name), signal.SIGKILL)
        until(lambda: not any(is_alive(each.pid) for each in before.values()), "their end", 10.0)
        boxes.gate.touch()
        assert [rollout.reward for rollout in client.rollouts()] == [1.0] * MANY


def test_a_killed_keeper_takes_its_sandboxes_and_the_rollouts_begin_again(place: Path) -> None:
    with boxes_in(place) as boxes, boxes.scene.client("trainer") as client:
        client.submit_all(boxes.task(str(number)) for number in range(MANY))
        until(lambda: _stages(boxes.scene).count("run") == MANY, "every run")
        before = boxes.up()
        assert len(before) == MANY
        hit(boxes.scene.node("sandboxes-0"), signal.SIGKILL)
        until(lambda: not any(is_alive(each.pid) for each in before), "their end", 10.0)
        boxes.gate.touch()
        rollouts = list(client.rollouts())
        assert [rollout.reward for rollout in rollouts] == [1.0] * MANY
        for rollout in rollouts:
            assert [failure.boundary for failure in rollout.failures] == ["sandbox"]
        assert _stages(boxes.scene).count("init") == 2 * MANY
        until(lambda: not boxes.left(), "the end of all sandboxes", 20.0)


def test_a_killed_launcher_leaves_nothing(place: Path) -> None:
    with boxes_in(place) as boxes, boxes.scene.client("trainer") as client:
        client.submit_all(boxes.task(str(number)) for number in range(MANY))
        until(lambda: len(boxes.up()) == MANY, "all sandboxes")
        _kill_launcher(boxes.scene)
        until(lambda: not boxes.left(), "the end of all sandboxes", 20.0)


def test_a_launcher_killed_together_with_its_keeper_leaves_nothing(place: Path) -> None:
    with boxes_in(place) as boxes, boxes.scene.client("trainer") as client:
        client.submit_all(boxes.task(str(number)) for number in range(MANY))
        until(lambda: len(boxes.up()) == MANY, "all sandboxes")
        keeper = boxes.scene.node("sandboxes-0")
        assert boxes.scene.launcher is not None
        os.kill(boxes.scene.launcher.pid, signal.SIGSTOP)  # it shall not start another
        hit(keeper, signal.SIGKILL)
        _kill_launcher(boxes.scene)
        until(lambda: not boxes.left(), "the end of all sandboxes", 30.0)


def test_a_sandbox_that_has_lived_long_enough_is_stopped(place: Path) -> None:
    with boxes_in(place) as boxes, boxes.scene.client("trainer") as client:
        client.submit(boxes.task("0", wall_s=2.0))
        until(lambda: len(boxes.up()) == 1, "its sandbox")
        until(lambda: not boxes.left(), "its end", 20.0)


def test_two_runs_side_by_side_do_not_see_each_other(place: Path) -> None:
    (place / "a").mkdir()
    (place / "b").mkdir()
    with boxes_in(place / "a") as one, one.scene.client("trainer") as client:
        with boxes_in(place / "b") as other, other.scene.client("trainer") as clients_other:
            client.submit(one.task("0"))
            clients_other.submit(other.task("0"))
            until(lambda: one.up() and other.up(), "a sandbox of each")
            [mine] = one.up()
            _kill_launcher(other.scene)
            until(lambda: not other.left(), "the end of the other's", 20.0)
        assert [record.name for record in one.up()] == [mine.name]
        one.gate.touch()
        assert [rollout.reward for rollout in client.rollouts()] == [1.0]


def test_the_pool_is_filled_again_and_gives_started_sandboxes(place: Path) -> None:
    with boxes_in(place, pool=3) as boxes, boxes.scene.client("trainer") as client:
        until(lambda: _figure(boxes.scene, "warm_now") == 3, "a full pool")
        client.submit_all(boxes.task(str(number)) for number in range(MANY))
        until(lambda: len(boxes.up()) == MANY, "all sandboxes")
        until(lambda: _figure(boxes.scene, "warm") >= 3, "the use of the pool")
        until(lambda: _figure(boxes.scene, "warm_now") == 3, "a pool filled again")
        assert _figure(boxes.scene, "by_bubblewrap") == 1


def _figure(scene: Scene, name: str) -> float:
    [node] = [node for node in scene.status()["nodes"] if node["role"] == "sandboxes"]
    figure: float = node["figures"][name]
    return figure


def _stages(scene: Scene) -> list[str]:
    found = executions(scene.counts).items()
    return [stage for (stage, _), attempts in found for _ in attempts]


def _kill_launcher(scene: Scene) -> None:
    assert scene.launcher is not None
    scene.launcher.kill()
    scene.launcher.wait(30.0)
    assert scene.launcher.stdout is not None
    scene.launcher.stdout.close()
    scene.launcher = None
