"""Tasks with tools and sandboxes through every process: the simulator plays demonstrations."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import Client, Rollout, Task, load
from engine.output import read_tasks
from engine.supervisor import Supervisor
from nodes.commands import tasks

from ..sandbox_kit import IMAGE, need

pytestmark = pytest.mark.timeout(900)
START_S = 300.0
SUMS = """def total(numbers):
    found = 0
    for n in numbers:
        found += n + 0
    return found
"""
TESTS = "from sums import total\n\n\ndef test_some():\n    assert total([1, 2]) == 3\n"
Run = Callable[..., list[Rollout]]
KINDS = ("math", "code", "stem", "swe")
PROVIDERS = ["bubblewrap", pytest.param("apptainer", marks=pytest.mark.apptainer)]


def sandboxes(provider: str) -> dict[str, Any]:
    """Return the section of a topology that lets `auto` choose this provider."""
    need(provider)
    return {"images": {"base": os.environ[IMAGE]}} if provider == "apptainer" else {}


@pytest.fixture(params=PROVIDERS)
def run(request: pytest.FixtureRequest, short_path: Path) -> Run:
    """Return a function that runs tasks through a topology of its own."""

    def ran(made: list[Task], accuracy: float = 1.0, demonstrations: str = "") -> list[Rollout]:
        options = {
            "accuracy": accuracy,
            "speed": 50,
            "context_tokens": 65_536,
            "demonstrations": demonstrations,
        }
        settings = {
            "version": 1,
            "run_dir": "r",
            "stages": [{"name": name, "slots": 8} for name in ("init", "run", "eval")],
            "router": {},
            "sandboxes": sandboxes(request.param),
            "backends": [{"name": "sim", "kind": "simulator", "capacity": 16, "options": options}],
        }
        file = short_path / "t.yaml"
        file.write_text(json.dumps(settings))
        with Supervisor(load(file)) as supervisor:
            supervisor.wait_ready(START_S)
            assert supervisor.sandboxes == {"local": request.param}
            with Client(file) as client:
                return list(client.run(made, 1))

    return ran


def examples(kind: str, place: Path) -> list[Task]:
    out = place / f"{kind}.jsonl"
    assert tasks([kind, "--examples", "--out", str(out)]) == 0
    return read_tasks(out)


def test_every_kind_is_completed_with_tools_in_sandboxes(run: Run, tmp_path: Path) -> None:
    made = [task for kind in KINDS for task in examples(kind, tmp_path)]
    rollouts = run(made)
    assert {rollout.outcome for rollout in rollouts} == {"completed"}, [
        r.failures for r in rollouts
    ]
    assert {rollout.task_id: rollout.reward for rollout in rollouts} == {
        task.task_id: 1.0 for task in made
    }
    used = {
        tool["name"]
        for rollout in rollouts
        for turn in rollout.data["run"]["turns"]
        for tool in turn["tools"]
    }
    assert used == {"bash", "ipython", "editor", "submit", "think"}


def test_a_policy_that_gives_up_is_worth_nothing_and_is_no_failure(
    run: Run, tmp_path: Path
) -> None:
    made = [task for kind in KINDS for task in examples(kind, tmp_path)]
    rollouts = run(made, accuracy=0.0)
    assert {(r.outcome, r.reward) for r in rollouts} == {("completed", 0.0)}


def sdist(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as out:
        for name, text in {"sums/__init__.py": SUMS, "tests/test_sums.py": TESTS}.items():
            member = tarfile.TarInfo(f"sums-1/{name}")
            member.size = len(text.encode())
            out.addfile(member, io.BytesIO(text.encode()))
    return path


def test_swe_instances_are_made_and_solved(run: Run, tmp_path: Path) -> None:
    out, turns = tmp_path / "tasks.jsonl", tmp_path / "turns.jsonl"
    words: list[Any] = ["swe", "--sdist", sdist(tmp_path / "sums-1.tar.gz"), "--count", 2]
    words += ["--demonstrations", turns, "--out", out]
    assert tasks([str(word) for word in words]) == 0
    made = read_tasks(out)
    assert len(made) == 2
    rollouts = run(made, demonstrations=str(turns))
    assert [(r.outcome, r.reward) for r in rollouts] == [("completed", 1.0)] * 2, rollouts
    assert all(r.data["run"]["patch"].startswith("diff --git") for r in rollouts)
