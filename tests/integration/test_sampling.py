"""Dynamic sampling over real processes: batches, early termination, carry-over, sources, resume."""

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from engine import Batch, Client, SourceFailed, Task
from engine.errors import Refused
from tests.topology_kit import QUICK, Site, running_topology

SCORED = """\
import asyncio

from nodes.tasks import Output


async def init(context):
    return Output()


async def run(context):
    await asyncio.sleep(context.task.payload.get("seconds", 0.01))
    context.spent(turns=1, tokens=10)
    return Output()


async def eval(context):
    member = int(context.rollout_id.rsplit("-", 1)[1])
    rewards = context.task.payload["rewards"]
    return Output(reward=rewards[member % len(rewards)])
"""


def tasks(pattern: str, seconds: float = 0.01, count: int = 10_000) -> Iterator[Task]:
    """Return prompts: `i` for an informative group, `u` for a uniform one, over and over."""
    for number in range(count):
        informative = pattern[number % len(pattern)] == "i"
        payload: dict[str, Any] = {"rewards": [1, 0] if informative else [1], "seconds": seconds}
        yield Task(f"t-{number}", "kinds.scored", payload)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with (
        TemporaryDirectory(prefix="rq") as short,
        running_topology(Path(short), QUICK, {"scored": SCORED}) as running,
    ):
        yield running


def settled(client: Client, deadline_s: float = 10.0) -> None:
    """Wait until the broker owes nothing."""
    give_up_at = time.monotonic() + deadline_s
    while client.status()["clients"][0]["unacked"] and time.monotonic() < give_up_at:
        time.sleep(0.02)


def test_batches_hold_informative_groups_only(site: Site) -> None:
    with Client(site.endpoint("front")) as client:
        batches: list[Batch] = []
        for batch in client.sample(tasks("uiu"), groups=3, group_size=4):
            batches.append(batch)
            if len(batches) == 3:
                break
    assert [batch.number for batch in batches] == [0, 1, 2]
    for batch in batches:
        assert batch.reason == "complete"
        assert len(batch.groups) == 3
        for group in batch.groups:
            assert len(group) == 4
            assert {rollout.reward for rollout in group} == {0.0, 1.0}
        assert batch.report.kept.groups == 3
        dropped = batch.report.dropped
        assert dropped.groups > 0
        assert batch.report.mean_reward == pytest.approx(
            (6 + dropped.rewarded) / (12 + dropped.rewarded)
        )


def test_a_source_that_ends_leaves_a_last_batch(site: Site) -> None:
    with Client(site.endpoint("front")) as client:
        found = list(client.sample(tasks("i", count=5), groups=3, group_size=2, over="carry"))
        assert [len(batch.groups) for batch in found] == [3, 2]
        assert [batch.reason for batch in found] == ["complete", "ended"]
        settled(client)
        assert client.status()["samplings"] == []


def test_a_source_that_raises_is_told_after_the_last_batch(site: Site) -> None:
    def failing() -> Iterator[Task]:
        yield from tasks("i", count=2)
        raise ValueError("no such file")

    with Client(site.endpoint("front")) as client:
        found: list[Batch] = []
        with pytest.raises(SourceFailed, match="no such file") as raised:
            found.extend(client.sample(failing(), groups=3, group_size=2))
    assert isinstance(raised.value.__cause__, ValueError)
    assert [(len(batch.groups), batch.reason) for batch in found] == [(2, "failed")]


def test_a_sampling_that_cannot_be_is_refused(site: Site) -> None:
    with Client(site.endpoint("front")) as client:
        with pytest.raises(Refused, match="dapo"):
            next(client.sample(tasks("i"), groups=3, group_size=2, keep="nonsense"))
        with pytest.raises(Refused, match=r"limits\.rollouts"):
            next(client.sample(tasks("i"), groups=1_000_000, group_size=2))
