"""What is delivered is what the engine sampled: tokens, prompts and log-probabilities."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from engine import Client, Rollout, Task
from nodes import tokens
from nodes.inference.probe import PROMPT
from nodes.tasks.calculator import calculator_tasks

from ..topology_kit import running_topology
from ..vllm_kit import TINY, logprobs
from .recorder import Record, recording

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

GROUP_SIZE, TASKS = 4, 8
TOLERANCE = 2e-4  # float32, two implementations of one model; up to 4e-5 was measured, by batch
VOCABULARY = tokens.load()


def topology(options: dict[str, Any], count: int = 1) -> str:
    backend = {"name": "vllm", "kind": "vllm", "count": count, "capacity": 16, "options": options}
    stages = [{"name": name, "slots": 32} for name in ("init", "run", "eval")]
    timeouts = {"heartbeat_s": 0.5, "lease_s": 10, "drain_s": 20, "start_s": 240}
    timeouts["cancel_grace_s"] = 20  # a busy server is late to say what it had sampled
    return json.dumps(
        {
            "version": 1,
            "durability": "process",
            "timeouts": timeouts,
            "stages": stages,
            "router": {},
            "backends": [backend],
        }
    )


def delivered(directory: Path, url: str, temperature: float) -> list[Rollout]:
    """Run calculator tasks through broker, workers, router and server; return all rollouts."""
    settings = {"turns": 6, "max_tokens": 96, "temperature": temperature, "context_tokens": 1900}
    wanted = [
        Task(each["task_id"], each["kind"], each["payload"])
        for each in calculator_tasks(TASKS, 5, settings)
    ]
    with (
        running_topology(directory, topology({"url": url}), {}) as site,
        Client(site.topology.path, "trainer") as client,
    ):
        return list(client.run(wanted, GROUP_SIZE))


@pytest.fixture(scope="module", params=[1.0, 1.7], ids=["as trained", "hot"])
def run(request: pytest.FixtureRequest, vllm_url: str) -> Iterator[tuple[list[Rollout], Record]]:
    directory = Path(mkdtemp(prefix="rq", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(rmtree, directory, ignore_errors=True)
        record = stack.enter_context(recording(vllm_url))
        yield delivered(directory, record.url, request.param), record


def test_every_rollout_completes_over_several_turns(
    run: tuple[list[Rollout], Record], tell: Callable[[str], None]
) -> None:
    rollouts, _ = run
    assert len({rollout.rollout_id for rollout in rollouts}) == GROUP_SIZE * TASKS
    assert {rollout.outcome for rollout in rollouts} <= {"completed", "truncated"}
    assert not [failure for rollout in rollouts for failure in rollout.failures]
    turns = [len(turns_of(rollout)) for rollout in rollouts]
    called = sum(any(turn.get("tools") for turn in turns_of(each)) for each in rollouts)
    tell(f"{called} of {len(rollouts)} rollouts called the tool, in {sum(turns)} turns")
    assert max(turns) >= 3
    assert called > 0


def test_what_is_delivered_is_what_the_engine_was_asked_and_sampled(
    run: tuple[list[Rollout], Record],
) -> None:
    rollouts, record = run
    found = []
    for rollout in rollouts:
        assert rollout.trajectory is not None
        ids, mask = rollout.trajectory.token_ids, np.zeros(len(rollout.trajectory), dtype=np.uint8)
        for turn in turns_of(rollout):
            (start, at), (at_too, end) = turn["prompt"], turn["completion"]
            assert at == at_too
            found.append((tuple(ids[start:at].tolist()), tuple(ids[at:end].tolist())))
            mask[at:end] = 1
        assert mask.tolist() == rollout.trajectory.loss_mask.tolist()
    server_probe, router_probe = record.turns[:2]
    assert router_probe[0] == PROMPT
    assert sorted([server_probe, router_probe, *found]) == sorted(record.turns)


def test_log_probabilities_are_those_that_transformers_finds(
    run: tuple[list[Rollout], Record],
    request: pytest.FixtureRequest,
    tell: Callable[[str], None],
    tmp_path: Path,
) -> None:
    rollouts, _ = run
    temperature = request.node.callspec.params["run"]
    trajectories = [rollout.trajectory for rollout in rollouts if rollout.trajectory is not None]
    rows = [trajectory.token_ids.tolist() for trajectory in trajectories]
    worst, count = 0.0, 0
    for trajectory, row in zip(
        trajectories, logprobs(TINY, rows, temperature, tmp_path), strict=True
    ):
        sampled = trajectory.loss_mask[1:] == 1
        wrong = np.abs(np.array(row)[sampled] - trajectory.logprobs[1:][sampled])
        worst, count = max(worst, float(wrong.max())), count + int(sampled.sum())
    tell(f"log-probabilities of {count} tokens differ by {worst:.1e} at most, T {temperature}")
    assert count > 1000
    assert worst < TOLERANCE


def test_decoding_and_encoding_again_would_have_changed_tokens(
    run: tuple[list[Rollout], Record], tell: Callable[[str], None]
) -> None:
    rollouts, _ = run
    changed = total = 0
    for rollout in rollouts:
        assert rollout.trajectory is not None
        ids = rollout.trajectory.token_ids
        for start, end in (turn["completion"] for turn in turns_of(rollout)):
            again = VOCABULARY.encode_marked(VOCABULARY.decode(ids[start:end]))
            changed += again != ids[start:end].tolist()
            total += 1
    tell(f"decoding and encoding again would have changed {changed} of {total} completions")
    assert changed > 0


def turns_of(rollout: Rollout) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = rollout.data["run"]["turns"]
    return turns
