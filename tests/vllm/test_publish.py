"""New weights, published by a trainer while rollouts are under way on a real server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import Client, Rollout, Task
from nodes import tokens

from ..topology_kit import Site, running_topology
from ..vllm_kit import OTHER, TINY, greedy, load_weights, metric
from .test_exactness import topology

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

GREEDY = 16
KIND = """\
from nodes import tokens
from nodes.tasks import Output, Sampling
from nodes.transcript import Transcript


async def init(context):
    return Output()


async def run(context):
    transcript = Transcript()
    transcript.prompt(tokens.load().opening([("user", context.task.payload["question"])]))
    session = f"{context.rollout_id}.{context.attempt}"
    sampling = Sampling(**context.task.payload["sampling"])
    generation = await context.model.generate(session, transcript.token_ids(), sampling)
    transcript.completion(generation, 0.0)
    await context.model.release(session)
    return Output(trajectory=transcript.trajectory(), data={"backend": generation.backend})


async def eval(context):
    return Output(reward=1.0)
"""
QUESTION = "Start with 12. Add 30. What is the result?"


@pytest.fixture
def site(short_path: Path, vllm_url: str) -> Iterator[Site]:
    load_weights(vllm_url, OTHER)  # random weights go on and on
    text = topology({"url": vllm_url})
    with running_topology(short_path, text, {"ask": KIND}, ready_s=240) as running:
        yield running
    load_weights(vllm_url, TINY)


def ask(site: Site, name: str, count: int, **sampling: float) -> list[Rollout]:
    task = Task(name, "kinds.ask", {"question": QUESTION, "sampling": sampling})
    with Client(site.topology.path, name) as client:
        return list(client.run([task], count))


def versions(rollout: Rollout) -> list[int]:
    assert rollout.trajectory is not None, rollout.failures
    found: list[int] = rollout.trajectory.policy_spans[:, 2].tolist()
    return found


def test_rollouts_under_way_go_on_and_later_ones_are_the_new_checkpoints(
    site: Site, tmp_path: Path, vllm_url: str
) -> None:
    with Client(site.topology.path, "publisher") as client, ThreadPoolExecutor() as pool:
        running = pool.submit(ask, site, "running", 4, max_tokens=900, temperature=1.0)

        site.until(lambda: metric(vllm_url, "num_requests_running") == 4, 120)
        published = client.publish(7, str(TINY), timeout_s=120)
        assert (published.policy_version, published.failed) == (7, {})
        for rollout in running.result(300):
            assert rollout.outcome == "completed"
            assert versions(rollout) == [0, 7]
    prompt = tokens.load().opening([("user", QUESTION)])
    for rollout in ask(site, "later", 2, max_tokens=GREEDY, temperature=0.0):
        assert versions(rollout) == [7]
        assert rollout.trajectory is not None
        sampled = rollout.trajectory.token_ids[len(prompt) :].tolist()
        assert sampled == greedy(TINY, prompt, GREEDY, tmp_path)[: len(sampled)]
        assert len(sampled) == GREEDY or sampled[-1] == tokens.load().end
