"""Samplings that share a small room: none waits for what another one holds."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ..chaos.scene import running
from ..sampling_play import Play


@pytest.mark.timeout(90)
def test_one_caller_of_two_samplings_is_given_a_batch_of_each_in_turn(
    short_path: Path, tmp_path: Path
) -> None:
    """There are more slots than room, and all groups are kept: one could fill the whole room."""
    stages = [{"name": stage, "slots": 64, "attempts": 1} for stage in ("run", "eval")]
    asked: dict[str, Any] = {"groups": 2, "group_size": 4, "over": "carry"}
    with running(short_path, stages=stages, limits={"rollouts": 40, "group": 8}) as scene:
        play = Play(scene, tmp_path)
        with scene.client("one") as one, scene.client("two") as two:
            mine, others = one.sample(play.prompts(), **asked), two.sample(play.prompts(), **asked)
            for number, both in enumerate(islice(zip(mine, others, strict=True), 6)):
                assert [(each.number, each.reason) for each in both] == [(number, "complete")] * 2
            mine.close()
            others.close()
            play.until_settled(one)
            play.until_settled(two)
