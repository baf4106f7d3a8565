"""`rollmq run` of math, code, STEM and SWE: a real server samples, its calls run in real sandboxes.

The tiny model knows the demonstrations of the examples by heart. What is tested is the path from
the tokens that a server sampled to the tools, the sandboxes and the rewards, and not the model.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import pytest

from engine import Rollout
from engine.output import read_rollouts
from nodes.commands import tasks

from ..sandbox_kit import IMAGE, need
from ..vllm_kit import CONTEXT_TOKENS, START_S
from .test_exactness import topology, turns_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

ROLLMQ = str(Path(sys.executable).with_name("rollmq"))
KINDS = ("math", "code", "stem", "swe")
GROUP_SIZE = 6
RUN_S = 1500.0
LIMITS = {"context_tokens": CONTEXT_TOKENS - 100, "max_tokens": 200, "turns": 8}
PROVIDERS = ["bubblewrap", pytest.param("apptainer", marks=pytest.mark.apptainer)]


def settings(url: str, provider: str) -> str:
    """Return a topology with a server that is there, and sandboxes of one provider."""
    found = json.loads(topology({"url": url}))
    found["timeouts"] = {"start_s": START_S}
    found["sandboxes"] = {"provider": provider, "pool": 4}
    if provider == "apptainer":
        found["sandboxes"]["images"] = {"base": os.environ[IMAGE]}
    return json.dumps(found)


def called(directory: Path, url: str, provider: str) -> tuple[str, list[Rollout]]:
    """Run every example with `rollmq run`; return what it printed, and the rollouts."""
    (directory / "t.yaml").write_text(settings(url, provider))
    limits = [f"--set=talk.{name}={value}" for name, value in LIMITS.items()]
    examples = ["examples", "--for", str(directory / "t.yaml"), *limits]
    assert tasks([*examples, "--out", str(directory / "tasks.jsonl")]) == 0
    words = ["t.yaml", "--tasks", "tasks.jsonl", "--group-size", str(GROUP_SIZE), "--out", "out"]
    done = subprocess.run(
        [ROLLMQ, "run", *words],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, list(read_rollouts(directory / "out" / "trajectories.jsonl"))


@pytest.fixture(scope="module", params=PROVIDERS)
def run(request: pytest.FixtureRequest, vllm_url: str) -> Iterator[tuple[str, list[Rollout]]]:
    need(request.param)
    directory = Path(mkdtemp(prefix="rq", dir="/tmp"))
    try:
        yield called(directory, vllm_url, request.param)
    finally:
        rmtree(directory, ignore_errors=True)


def by_kind(rollouts: list[Rollout]) -> dict[str, list[Rollout]]:
    found: dict[str, list[Rollout]] = {kind: [] for kind in KINDS}
    for rollout in rollouts:
        found[rollout.task_id.partition("-")[0]].append(rollout)
    return found


def answered(rollout: Rollout) -> list[str]:
    """Return the tools that took a call of the model, without an error."""
    tools: list[dict[str, Any]] = [
        tool for turn in turns_of(rollout) for tool in turn.get("tools", ())
    ]
    return [tool["name"] for tool in tools if not tool["error"]]


def test_every_rollout_ends_by_the_models_doing_and_none_fails(
    run: tuple[str, list[Rollout]], request: pytest.FixtureRequest
) -> None:
    printed, rollouts = run
    assert f"sandboxes on local: {request.node.callspec.params['run']}" in printed
    examples = 15
    assert len({rollout.rollout_id for rollout in rollouts}) == len(rollouts)
    assert len(rollouts) == GROUP_SIZE * examples
    assert {rollout.outcome for rollout in rollouts} <= {"completed", "truncated"}
    assert not [failure for rollout in rollouts for failure in rollout.failures]
    assert all(
        rollout.reward in {0.0, 1.0} or rollout.task_id == "code-runs" for rollout in rollouts
    )


def test_what_the_model_sampled_ran_in_sandboxes_and_was_rewarded(
    run: tuple[str, list[Rollout]],
    request: pytest.FixtureRequest,
    tell: Callable[[str], None],
) -> None:
    provider = request.node.callspec.params["run"]
    used: dict[str, set[str]] = defaultdict(set)
    for kind, rollouts in by_kind(run[1]).items():
        for rollout in rollouts:
            used[kind].update(answered(rollout))
        right = [rollout for rollout in rollouts if rollout.reward == 1.0]
        by_tools = [rollout for rollout in right if answered(rollout)]
        tell(
            f"{kind}, {provider}: {len(right)} of {len(rollouts)} rewards are 1, "
            f"{len(by_tools)} of them with tools: {', '.join(sorted(used[kind]))}"
        )
        assert by_tools, f"{kind}: no tool call of a model led to a reward"
        assert len(right) >= len(rollouts) / 4
    assert used["math"] >= {"bash", "ipython", "submit"}
    assert used["code"] >= {"editor", "bash"}
    assert used["stem"] >= {"ipython", "think", "submit"}
    assert used["swe"] >= {"bash", "editor"}
