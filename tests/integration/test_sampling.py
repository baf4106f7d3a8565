"""Dynamic sampling over real processes: batches, early termination, carry-over, sources, resume."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import AsyncClient, Batch, Client, SourceFailed, Task
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
        tempfile.TemporaryDirectory(prefix="rq") as short,
        running_topology(Path(short), QUICK, {"scored": SCORED}) as running,
    ):
        yield running


def settled(client: Client, deadline_s: float = 20.0) -> None:
    """Wait until the broker owes nothing."""
    give_up_at = time.monotonic() + deadline_s
    while [each for each in client.status()["clients"] if each["unacked"]]:
        assert time.monotonic() < give_up_at, f"results are owed: {client.status()}"
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

    found: list[Batch] = []
    with Client(site.endpoint("front")) as client:
        batches = client.sample(failing(), groups=3, group_size=2)
        with pytest.raises(SourceFailed, match="no such file") as raised:
            found.extend(batches)
    assert isinstance(raised.value.__cause__, ValueError)
    assert [(len(batch.groups), batch.reason) for batch in found] == [(2, "failed")]


def test_a_sampling_that_cannot_be_is_refused(site: Site) -> None:
    with Client(site.endpoint("front")) as client:
        with pytest.raises(Refused, match="dapo"):
            next(client.sample(tasks("i"), groups=3, group_size=2, keep="nonsense"))
        with pytest.raises(Refused, match=r"limits\.rollouts"):
            next(client.sample(tasks("i"), groups=1_000_000, group_size=2))


def test_a_closed_sampling_leaves_nothing_behind(site: Site) -> None:
    with Client(site.endpoint("front")) as client:
        next(client.sample(tasks("i", seconds=0.2), groups=1, group_size=2))
        settled(client)
        assert client.status()["samplings"] == []
        assert list(client.rollouts()) == []


def test_a_client_that_closes_first_leaves_nothing_behind(site: Site) -> None:
    client = Client(site.endpoint("front"))
    batches = client.sample(tasks("i", seconds=0.2), groups=1, group_size=2)
    assert next(batches).reason == "complete"
    client.close()
    batches.close()
    with Client(site.endpoint("front")) as other:
        settled(other)
        assert other.status()["samplings"] == []


def test_a_named_sampling_goes_on_in_the_same_process(site: Site) -> None:
    with Client(site.endpoint("front"), "again") as client:
        what = {"groups": 2, "group_size": 2, "over": "carry", "sampling_id": "lasting"}
        for batch in client.sample(tasks("i", count=5), **what):
            first = batch
            break
        found = list(client.sample(tasks("i", count=5), **what))
        assert [batch.number for batch in found] == [0, 1, 2]
        names = [[rollout.rollout_id for rollout in group] for group in found[0].groups]
        assert names == [[rollout.rollout_id for rollout in group] for group in first.groups]
        settled(client)


def test_an_async_clients_batches_hold_informative_groups_only(site: Site) -> None:
    async def scene() -> None:
        batches: list[Batch] = []
        async with AsyncClient(site.endpoint("front")) as client:
            async for batch in client.sample(tasks("uiu"), groups=3, group_size=4):
                batches.append(batch)
                await asyncio.sleep(0)
                if len(batches) == 3:
                    break
        assert [(batch.number, len(batch.groups)) for batch in batches] == [(0, 3), (1, 3), (2, 3)]
        for group in (group for batch in batches for group in batch.groups):
            assert {rollout.reward for rollout in group} == {0.0, 1.0}
        assert all(batch.report.dropped.groups > 0 for batch in batches)

    asyncio.run(scene())


def test_an_async_clients_source_that_ends_leaves_a_last_batch(site: Site) -> None:
    async def scene() -> None:
        async with AsyncClient(site.endpoint("front")) as client:
            some = client.sample(tasks("i", count=5), groups=3, group_size=2, over="carry")
            found = [batch async for batch in some]
            assert [(len(b.groups), b.reason) for b in found] == [(3, "complete"), (2, "ended")]
            assert (await client.status())["samplings"] == []

    asyncio.run(scene())


def test_an_async_clients_source_that_raises_is_told_after_the_last_batch(site: Site) -> None:
    async def scene() -> None:
        def failing() -> Iterator[Task]:
            yield from tasks("i", count=2)
            raise ValueError("no such file")

        async with AsyncClient(site.endpoint("front")) as client:
            some = client.sample(failing(), groups=3, group_size=2)
            batch = await anext(some)
            assert (len(batch.groups), batch.reason) == (2, "failed")
            with pytest.raises(SourceFailed, match="no such file"):
                await anext(some)

    asyncio.run(scene())


def test_a_refused_sampling_does_not_break_an_async_client(site: Site) -> None:
    async def scene() -> None:
        async with AsyncClient(site.endpoint("front")) as client:
            with pytest.raises(Refused, match="dapo"):
                await anext(client.sample(tasks("i"), groups=3, group_size=2, keep="nonsense"))
            with pytest.raises(Refused, match=r"limits\.rollouts"):
                await anext(client.sample(tasks("i"), groups=1_000_000, group_size=2))
            batch = await anext(client.sample(tasks("i"), groups=1, group_size=2))
            assert batch.reason == "complete"

    asyncio.run(scene())
