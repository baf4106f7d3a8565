"""The keeper over its socket, with sandboxes that are real."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.errors import BoundaryError
from nodes.sandboxes.contract import Limits, Spec
from nodes.sandboxes.enter import start_time
from nodes.sandboxes.keeper import Keeper
from nodes.sandboxes.link import AttemptSandboxes, Link
from nodes.sandboxes.process import Process

from ..sandbox_kit import OWNER, leftovers, make_provider, need

S = 60.0
Scene = Callable[[Keeper, Link], Awaitable[None]]


@asynccontextmanager
async def kept(place: Path, pool: int = 0, images: tuple[str, ...] = ()) -> AsyncIterator[Any]:
    maker = make_provider("bubblewrap", place)
    (place / "records").mkdir(exist_ok=True)

    def other(name: str) -> Process:
        assert name == "process"
        return Process(place / "b", place / "records")

    keeper = Keeper(maker, place / "records", place / "b", Limits(), pool, ["", *images], other)
    await keeper.sweep()
    over = asyncio.Event()
    serving = asyncio.create_task(keeper.serve(place / "s" / "keeper", over, lambda: None))
    link = Link(place / "s" / "keeper")
    try:
        async with asyncio.timeout(S):
            while not (place / "s" / "keeper").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield keeper, link
    finally:
        await link.close()
        over.set()
        await serving


def play(place: Path, scene: Scene, **options: Any) -> None:
    need("bubblewrap")

    async def on_stage() -> None:
        async with kept(place, **options) as (keeper, link):
            await scene(keeper, link)

    asyncio.run(on_stage())
    assert leftovers(place) == []
    assert not (place / "b").exists()


def test_nothing_is_left_when_stop_returns(short_path: Path) -> None:
    async def scene(keeper: Keeper, link: Link) -> None:
        sandbox = await link.start(Spec(), OWNER)
        assert (await sandbox.exec(["echo", "hello"], timeout_s=S)).stdout == b"hello\n"
        await sandbox.stop()
        assert not sandbox.is_alive()
        assert leftovers(short_path) == []
        await sandbox.stop()

    play(short_path, scene)


def test_what_the_topology_allows_is_not_exceeded(short_path: Path) -> None:
    async def scene(keeper: Keeper, link: Link) -> None:
        sandbox = await link.start(Spec(limits=Limits(processes=10**6)), OWNER)
        assert sandbox.record.limits.processes == Limits().processes

    play(short_path, scene)


def test_an_image_that_is_not_there_is_refused_for_good(short_path: Path) -> None:
    async def scene(keeper: Keeper, link: Link) -> None:
        with pytest.raises(BoundaryError, match="names no image 'swe'") as caught:
            await link.start(Spec(image="swe"), OWNER)
        assert caught.value.boundary == "sandbox"
        assert not caught.value.retry

    play(short_path, scene)


def test_a_start_that_nobody_waits_for_is_ended(short_path: Path) -> None:
    async def scene(keeper: Keeper, link: Link) -> None:
        asked = asyncio.create_task(link.start(Spec(), OWNER))
        async with asyncio.timeout(S):
            while not link._waiting:  # noqa: ASYNC110
                await asyncio.sleep(0)
        asked.cancel()
        async with asyncio.timeout(S):
            while not keeper.counts["ended"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert len(keeper.book) == 0

    play(short_path, scene)


def test_a_warm_sandbox_that_died_is_not_lent(short_path: Path) -> None:
    async def scene(keeper: Keeper, link: Link) -> None:
        async with asyncio.timeout(S):
            while keeper.book.count("warm") < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        [name] = keeper.book.names()
        record = keeper.book.get(name)
        assert record is not None
        await keeper._maker._lifelines.end(record)  # type: ignore[attr-defined]
        sandbox = await link.start(Spec(), OWNER)
        assert sandbox.name != name
        assert (await sandbox.exec(["true"], timeout_s=S)).exit_code == 0

    play(short_path, scene, pool=1)


def test_what_an_earlier_keeper_left_is_removed_whatever_made_it(short_path: Path) -> None:
    short_path.chmod(0o755)
    need("bubblewrap")

    async def leave() -> int:
        earlier = Process(short_path / "b", short_path / "records")
        sandbox = await earlier.start(Spec(), OWNER)
        left = await sandbox.exec(["sh", "-c", "setsid sleep 4730 & echo $!"], timeout_s=S)
        await earlier.close()
        (short_path / "b" / "sb-without-a-record").mkdir()
        return int(left.stdout)

    pid = asyncio.run(leave())

    async def scene(keeper: Keeper, link: Link) -> None:
        assert keeper.counts["reaped"] == 1
        assert leftovers(short_path) == []

    play(short_path, scene)
    assert start_time(pid) == 0


def test_without_a_keeper_a_task_is_told(short_path: Path) -> None:
    async def ask() -> None:
        with pytest.raises(BoundaryError, match="cannot be reached"):
            await Link(short_path / "nobody", 0.1).start(Spec(), OWNER)
        with pytest.raises(BoundaryError, match="no `sandboxes`"):
            await AttemptSandboxes(None, OWNER).open(Spec())

    asyncio.run(ask())
