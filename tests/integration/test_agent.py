"""The agent loop through every process: broker, workers, router and simulated servers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Client, Rollout, Task, load
from engine.supervisor import Supervisor
from nodes import tokens
from nodes.tasks.calculator import calculator_tasks

pytestmark = pytest.mark.timeout(300)
START_S = 120.0
VOCABULARY = tokens.load()


@pytest.fixture
def path(short_path: Path) -> Iterator[Path]:
    backend = {"name": "sim", "kind": "simulator", "count": 2, "capacity": 16}
    settings = {
        "version": 1,
        "run_dir": "r",
        "stages": [{"name": name, "slots": 16} for name in ("init", "run", "eval")],
        "router": {},
        "backends": [{**backend, "options": {"accuracy": 1.0, "speed": 50}}],
    }
    file = short_path / "t.yaml"
    file.write_text(json.dumps(settings))
    with Supervisor(load(file)) as supervisor:
        supervisor.wait_ready(START_S)
        yield file


def ran(path: Path, count: int, **settings: Any) -> list[Rollout]:
    made = calculator_tasks(count, 7, settings)
    tasks = [Task(line["task_id"], line["kind"], line["payload"]) for line in made]
    with Client(path) as client:
        return list(client.run(tasks, 2))


def check(rollout: Rollout) -> None:
    """Expect turns that follow each other token by token, and what was sampled marked as such."""
    trajectory, turns = rollout.trajectory, rollout.data["run"]["turns"]
    assert trajectory is not None
    mask = np.zeros(len(trajectory), dtype=np.uint8)
    done = 0
    for turn in turns:
        start, end = turn["completion"]
        assert turn["prompt"] == [0, start]
        assert done < start < end
        assert turn["backend"].startswith("sim-")
        assert turn["seconds"] >= turn["prefill_s"] + turn["decode_s"] > 0
        mask[start:end], done = 1, end
    assert trajectory.loss_mask.tolist() == mask.tolist()
    assert (trajectory.logprobs[mask == 0] == 0).all()
    assert int((trajectory.logprobs[mask == 1] < 0).sum()) > 0
    assert trajectory.policy_spans[:, :2].tolist() == [turn["completion"] for turn in turns]
    assert rollout.arrays["segments"].tolist() == [[0, len(trajectory)]]


def test_questions_are_worked_out_with_the_tool_over_several_turns(path: Path) -> None:
    rollouts = ran(path, 6)
    assert [rollout.outcome for rollout in rollouts] == ["completed"] * 12
    assert [rollout.reward for rollout in rollouts] == [1.0] * 12
    for rollout in rollouts:
        check(rollout)
        turns = rollout.data["run"]["turns"]
        used = [each for turn in turns for each in turn["tools"]]
        assert len(used) == len(turns) - 1 >= 1
        assert all(turn["cached_tokens"] > 0 for turn in turns[1:])
        text = VOCABULARY.decode(rollout.trajectory.token_ids)
        assert text.count("<tool_response>") == len(used)


def test_a_rollout_over_its_limit_of_turns_is_truncated_and_still_aligned(path: Path) -> None:
    rollouts = ran(path, 4, turns=1)
    for rollout in rollouts:
        assert (rollout.outcome, rollout.data["run"]["limit"]) == ("truncated", "turns")
        check(rollout)
