"""Samplings that share a small room: none waits for what another one holds."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from engine import Batch, Task

from ..chaos.scene import running, until
from ..sampling_play import Play


@pytest.mark.timeout(120)
def test_one_caller_of_two_samplings_is_given_a_batch_of_each_in_turn(
    short_path: Path, tmp_path: Path
) -> None:
    """There are more slots than room, and all groups are kept: one could fill the whole room."""
    stages = [{"name": stage, "slots": 64, "attempts": 1} for stage in ("run", "eval")]
    asked: dict[str, Any] = {"groups": 2, "group_size": 4, "over": "carry"}
    both_are_open = Event()

    def prompts(play: Play) -> Iterator[Task]:
        assert both_are_open.wait(60)
        yield from play.prompts()

    with running(short_path, stages=stages, limits={"rollouts": 40, "group": 8}) as scene:
        play = Play(scene, tmp_path)
        with scene.client("one") as one, scene.client("two") as two, ThreadPoolExecutor(2) as pool:
            samplings = [each.sample(prompts(play), **asked) for each in (one, two)]
            waiting = [pool.submit(next, each) for each in samplings]
            until(lambda: len(one.status()["samplings"]) == 2, "both to be open")
            both_are_open.set()
            taken: list[Batch] = [each.result(60) for each in waiting]
            for _ in range(5):
                taken += [next(each) for each in samplings]
            assert [each.number for each in taken] == [n for n in range(6) for _ in samplings]
            assert {each.reason for each in taken} == {"complete"}
            for each in samplings:
                each.close()
            play.until_settled(one)
            play.until_settled(two)
