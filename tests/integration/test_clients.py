"""Both clients against brokers and workers that are real processes."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine import AsyncClient, Client, Rollout, Task
from engine.errors import BrokerUnreachable, Full, Refused, Replaced

from ..topology_kit import ECHO, QUICK, Site, running_topology

GATED = """\
import asyncio
from pathlib import Path

from nodes.tasks import Output


def init(context):
    return Output()


async def run(context):
    context.spent(turns=1, tokens=8)
    if "begun" in context.task.payload:
        Path(context.task.payload["begun"], context.rollout_id).touch()
    await asyncio.sleep(context.task.payload.get("seconds", 0))
    gate = context.task.payload.get("gate")
    while gate and not Path(gate).exists():
        await asyncio.sleep(0.02)
    return Output()


def eval(context):
    return Output(reward=1.0)
"""
KINDS = {"echo": ECHO, "gated": GATED}
ROOM = 4  # rollouts that the small broker holds


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with (
        tempfile.TemporaryDirectory(prefix="rq", dir="/tmp") as directory,
        running_topology(Path(directory), QUICK, KINDS) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def small() -> Iterator[Site]:
    """A broker with room for few rollouts."""
    with (
        tempfile.TemporaryDirectory(prefix="rq", dir="/tmp") as directory,
        running_topology(
            Path(directory), f"{QUICK}limits: {{rollouts: {ROOM}, group: {ROOM}}}\n", KINDS
        ) as it,
    ):
        yield it


def connect(site: Site, name: str, **options: Any) -> Client:
    return Client(site.topology.path, name, **options)


def echo(name: str, **payload: Any) -> Task:
    return Task(name, "kinds.echo", payload)


def gated(name: str, gate: object = "never") -> Task:
    return Task(name, "kinds.gated", {"gate": str(gate)})


def names(rollouts: list[Rollout]) -> list[str]:
    return sorted(rollout.rollout_id for rollout in rollouts)


def drop(client: Client) -> None:
    """Leave as a process does that is killed: no acknowledgement, no goodbye."""
    client._front.destroy(linger_ms=0)


def test_what_is_submitted_comes_back_as_views_on_what_was_received(site: Site) -> None:
    with connect(site, "views") as client:
        submitted = client.submit(echo("t", x=[1, "ä"]), 2)
        found = list(client.rollouts())
        assert names(found) == sorted(submitted)
        assert [rollout.seq for rollout in found] == [1, 2]
        assert client.owed == 0
    for rollout in found:
        assert rollout.data["init"] == {"payload": {"x": [1, "ä"]}}
        assert (rollout.outcome, rollout.reward, rollout.rewards) == ("completed", 1, {"echo": 1})
        assert rollout.trajectory is not None
        assert rollout.trajectory.token_ids.tolist() == list(range(8))
        for name in ("token_ids", "loss_mask", "logprobs"):
            array: Any = getattr(rollout.trajectory, name)
            assert array.base is not None
            assert not array.flags.writeable


def test_what_is_acknowledged_was_synced_before(site: Site) -> None:
    taken, synced = 0, 0
    with connect(site, "observer") as observer:

        def sync() -> None:
            nonlocal synced
            [mine] = [
                each for each in observer.status()["clients"] if each["client_id"] == "synced"
            ]
            assert total - mine["unacked"] <= synced, "acknowledged before it was synced"
            synced = taken

        with connect(site, "synced", sync=sync) as client:
            total = len(client.submit(echo("t"), 100))
            for _ in client.rollouts():
                taken += 1
        assert taken == synced == total


def test_what_cannot_be_synced_is_not_acknowledged(site: Site) -> None:
    def refuse() -> None:
        raise OSError("no disk")

    client = connect(site, "unsynced", sync=refuse)
    client.submit(echo("t"), 3)
    with pytest.raises(OSError, match="no disk"):
        list(client.rollouts())
    with pytest.raises(OSError, match="no disk"):
        client.close()
    with connect(site, "unsynced") as client:
        assert len(list(client.rollouts())) == 3


def test_an_endpoint_serves_as_well_as_a_topology_file(site: Site) -> None:
    with Client(site.endpoint("front")) as client:
        [name] = client.submit(echo("t"))
        assert names(list(client.rollouts())) == [name]


def test_groups_come_whole(site: Site) -> None:
    with connect(site, "groups", window=2) as client:
        client.submit_all((echo(f"t-{number}") for number in range(5)), 3)
        groups = list(client.groups())
    assert sorted(group[0].task_id for group in groups) == [f"t-{number}" for number in range(5)]
    for group in groups:
        assert len({rollout.group_id for rollout in group}) == 1
        assert len({rollout.rollout_id for rollout in group}) == 3


def test_a_loop_that_was_broken_off_goes_on_where_it_was(site: Site) -> None:
    with connect(site, "broken") as client:
        client.submit_all((echo(f"t-{number}") for number in range(4)), 2)
        found = [next(client.groups())]
        found += [next(client.groups())]
        found += client.groups()
        assert sorted(group[0].task_id for group in found) == [f"t-{number}" for number in range(4)]
        client.submit(echo("last"), 3)
        few = [next(client.rollouts()), next(client.rollouts())]
        few += client.rollouts()
        assert len({rollout.rollout_id for rollout in few}) == 3
    with connect(site, "broken") as client:
        assert client.owed == 0


def test_a_run_keeps_to_its_bound_of_rollouts_in_flight(site: Site) -> None:
    with connect(site, "bounded") as client:
        held, found = [], []
        for rollout in client.run((echo(f"t-{n}") for n in range(12)), 2, in_flight=4):
            held.append(client.owed)
            found.append(rollout)
    assert len(set(names(found))) == 24
    assert max(held) <= 4


def test_a_run_repeated_under_the_same_names_ends_with_nothing_new(site: Site) -> None:
    for expected in (12, 0):
        with connect(site, "repeated") as client:
            tasks = (echo(f"t-{number}") for number in range(6))
            found = list(client.run(tasks, 2, in_flight=2, group_id=lambda task: task.task_id))
            assert len(found) == expected


def test_without_waiting_a_broker_without_room_is_full(small: Site) -> None:
    with connect(small, "full") as client:
        client.submit(gated("t"), ROOM)
        with pytest.raises(Full, match=r"4 rollouts are held, limits\.rollouts 4"):
            client.submit(echo("more"), wait=False)
        with pytest.raises(Full, match=r"no room for 0\.3 s"):
            client.submit(echo("more"), timeout_s=0.3)
        with pytest.raises(Refused, match="invalid: rollout_ids: 5 are over 4"):
            client.submit(echo("many"), ROOM + 1)
        receipts = client.cancel(everything=True).receipts
        assert len(receipts) == ROOM
        assert {rollout.outcome for rollout in client.rollouts()} == {"cancelled"}
        client.submit(echo("again"), wait=False)
        assert [rollout.task_id for rollout in client.rollouts()] == ["again"]


def test_a_run_beyond_the_brokers_room_is_held_back_and_completes(small: Site) -> None:
    with connect(small, "pressed", window=1) as client:
        found = list(client.run((echo(f"t-{number}") for number in range(10)), 2))
        assert client.status()["bounds"]["rollouts"][1] == ROOM
    assert len(set(names(found))) == 20


def test_groups_larger_than_the_window_complete(small: Site) -> None:
    with connect(small, "narrow", window=1) as client:
        client.submit(echo("t"), ROOM)
        assert [len(group) for group in client.groups()] == [ROOM]


def test_a_cancel_tells_what_was_stopped_what_had_ended_and_what_nobody_knows(
    site: Site, tmp_path: Path
) -> None:
    with connect(site, "cancel") as client:
        [ended] = client.submit(echo("t"))
        assert len(list(client.rollouts())) == 1
        task = Task("g", "kinds.gated", {"gate": "never", "begun": str(tmp_path)})
        stopped = client.submit(task, 2, group_id="g")
        site.until(lambda: len(list(tmp_path.iterdir())) == 2)
        answer = client.cancel([ended, "x"], group_ids=["g"])
        assert sorted(receipt.rollout_id for receipt in answer.receipts) == sorted(stopped)
        assert (answer.ended, answer.unknown) == ((ended,), ("x",))
        for receipt in answer.receipts:
            assert (receipt.stage, receipt.running) == ("run", True)
            assert (receipt.usage.turns, receipt.usage.tokens) == (1, 8)
        found = list(client.rollouts())
    assert [(rollout.outcome, rollout.reward) for rollout in found] == [("cancelled", None)] * 2
    assert {rollout.receipt for rollout in found} == set(answer.receipts)


def stage(client: Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in client.status()["stages"] if row["stage"] == name)
    return found


def test_what_was_not_acknowledged_comes_again_to_the_same_client_id(site: Site) -> None:
    first = connect(site, "resumed")
    first.submit_all((echo(f"t-{number}") for number in range(4)), 2)
    before = list(first.groups())
    first.submit_all(echo(f"u-{number}") for number in range(4))
    worked_on = next(first.rollouts())
    drop(first)
    with connect(site, "resumed") as second:
        found = list(second.rollouts())
        assert list(second.rollouts()) == []
    assert sorted(rollout.task_id for rollout in found if rollout.task_id[0] == "u") == [
        f"u-{number}" for number in range(4)
    ]
    assert worked_on.seq in {rollout.seq for rollout in found}
    assert len(before) == 4
    with connect(site, "resumed") as third:
        assert third.owed == 0


def test_a_second_process_of_a_client_replaces_the_first(site: Site) -> None:
    first = connect(site, "twin")
    with connect(site, "twin"):
        with pytest.raises(Replaced):
            site.until(lambda: not first.status())
        drop(first)


def test_two_clients_share_the_workers_fairly(site: Site) -> None:
    slow = {"seconds": 0.03}
    with connect(site, "many") as many, connect(site, "few") as few:
        many.submit(Task("t", "kinds.gated", slow), 80)
        few.submit(Task("t", "kinds.gated", slow), 8)
        few_s = max(rollout.total_s for rollout in few.rollouts())
        many_s = max(rollout.total_s for rollout in many.rollouts())
    assert few_s < many_s / 2


def test_a_payload_over_the_limit_is_refused_and_the_client_goes_on(site: Site) -> None:
    with connect(site, "large") as client:
        text = "x" * site.topology.limits.message_bytes
        with pytest.raises(Refused, match=r"over limits\.message_bytes"):
            client.submit(echo("large", text=text))
        client.submit(echo("small"))
        assert [rollout.task_id for rollout in client.rollouts()] == ["small"]


def test_a_broker_that_is_not_there_is_named(short_path: Path) -> None:
    with pytest.raises(BrokerUnreachable, match=f"welcome from ipc://{short_path}/none"):
        Client(f"ipc://{short_path}/none", connect_s=0.1)

    async def scenario() -> None:
        with pytest.raises(BrokerUnreachable, match=f"welcome from ipc://{short_path}/none"):
            async with AsyncClient(f"ipc://{short_path}/none", connect_s=0.1):
                pass

    asyncio.run(scenario())


@asynccontextmanager
async def connected(site: Site, name: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(site.topology.path, name) as client:
        yield client


def test_the_asyncio_client_runs_more_tasks_than_the_broker_holds(small: Site) -> None:
    async def scenario() -> None:
        async with connected(small, "async-run") as client:
            tasks = (Task(f"t{number}", "kinds.echo", {}) for number in range(3 * ROOM))
            seen = [rollout.task_id async for rollout in client.run(tasks, group_size=2)]
        assert sorted(seen) == sorted(2 * [f"t{number}" for number in range(3 * ROOM)])

    asyncio.run(scenario())


def test_the_asyncio_client_submits_and_receives_rollouts_and_groups(site: Site) -> None:
    async def scenario() -> None:
        async with connected(site, "async") as client:
            submitted = await asyncio.gather(
                *(client.submit(echo(f"t-{number}"), 2) for number in range(4))
            )
            found = [rollout async for rollout in client.rollouts()]
            assert names(found) == sorted(name for group in submitted for name in group)
            assert found[0].trajectory is not None
            ids: Any = found[0].trajectory.token_ids
            assert (ids.base is None, ids.flags.writeable) == (False, False)
            await client.submit_all((echo(f"u-{number}") for number in range(3)), 2)
            groups = [group async for group in client.groups()]
            assert [len(group) for group in groups] == [2, 2, 2]
        async with connected(site, "async") as client:
            assert [rollout async for rollout in client.rollouts()] == []

    asyncio.run(scenario())


def test_the_asyncio_client_goes_on_with_a_loop_that_was_broken_off(site: Site) -> None:
    async def scenario() -> None:
        async with connected(site, "async-broken") as client:
            await client.submit(echo("t"), 3)
            found = []
            async for rollout in client.rollouts():
                found.append(rollout)
                break
            found += [rollout async for rollout in client.rollouts()]
            assert len(set(names(found))) == 3
        async with connected(site, "async-broken") as client:
            assert [rollout async for rollout in client.rollouts()] == []

    asyncio.run(scenario())


def test_the_asyncio_client_is_told_of_a_full_broker_and_cancels(small: Site) -> None:
    async def scenario() -> None:
        async with connected(small, "async-full") as client:
            await client.submit(gated("t"), ROOM, group_id="g")
            with pytest.raises(Full):
                await client.submit(echo("more"), wait=False)
            waiting = asyncio.create_task(client.submit(echo("more")))
            assert (await client.status())["bounds"]["rollouts"] == [ROOM, ROOM]
            assert len((await client.cancel(group_ids=["g"])).receipts) == ROOM
            found = [rollout async for rollout in client.rollouts()]
            await waiting
            assert [rollout.outcome for rollout in found][:ROOM] == ["cancelled"] * ROOM
            found += [rollout async for rollout in client.rollouts()]
            assert [rollout.task_id for rollout in found][ROOM:] == ["more"]

    asyncio.run(scenario())


def test_the_asyncio_client_with_a_taken_client_id_is_told(site: Site) -> None:
    async def scenario() -> None:
        async with connected(site, "async-twin") as first, connected(site, "async-twin"):
            with pytest.raises(Replaced):
                await first.status()

    asyncio.run(scenario())
