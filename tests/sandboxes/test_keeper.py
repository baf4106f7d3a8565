"""The keeper over its socket, with sandboxes that are real."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from engine.errors import BoundaryError
from nodes.sandboxes.contract import Limits, Spec
from nodes.sandboxes.enter import start_time
from nodes.sandboxes.keeper import Keeper
from nodes.sandboxes.link import AttemptSandboxes, Link, SandboxGone
from nodes.sandboxes.process import Process

from ..sandbox_kit import OWNER, leftovers, make_provider, need

S = 60.0
MIB = 1024 * 1024
HOARD = """
import subprocess, sys
script = "import sys, time; held = b'x' * (int(sys.argv[1]) << 20); time.sleep(1.5)"
count, size = sys.argv[1:]
started = [subprocess.Popen([sys.executable, "-c", script, size]) for _ in range(int(count))]
print(*[each.wait() for each in started])
"""
SHARERS = """
import os, time
held = b"x" * (150 << 20)
pids = []
for _ in range(4):
    if not (pid := os.fork()):
        time.sleep(1.5)
        os._exit(0)
    pids.append(pid)
print(*[os.waitpid(pid, 0)[1] for pid in pids])
"""
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


def test_processes_that_together_take_too_much_are_ended_and_the_sandbox_goes_on(
    short_path: Path,
) -> None:
    limits = Limits(memory_bytes=512 * MIB, total_bytes=256 * MIB)

    async def scene(keeper: Keeper, link: Link) -> None:
        sandbox = await link.start(Spec(limits=limits), OWNER)
        small = await sandbox.exec(["python3", "-c", HOARD, "1", "60"], timeout_s=S)
        assert (small.exit_code, keeper.figures()["over_memory"]) == (0, 0)
        many = await sandbox.exec(["python3", "-c", HOARD, "6", "60"], timeout_s=S)
        assert b"-9" in many.stdout.split() or many.exit_code == -9
        assert keeper.figures()["over_memory"] >= 1
        alive = await sandbox.exec(["echo", "still here"], timeout_s=S)
        assert alive.stdout == b"still here\n"

    play(short_path, scene)


def test_pages_that_processes_share_count_once(short_path: Path) -> None:
    limits = Limits(memory_bytes=512 * MIB, total_bytes=256 * MIB)

    async def scene(keeper: Keeper, link: Link) -> None:
        sandbox = await link.start(Spec(limits=limits), OWNER)
        done = await sandbox.exec(["python3", "-c", SHARERS], timeout_s=S)
        assert (done.exit_code, done.stdout) == (0, b"0 0 0 0\n")
        assert keeper.figures()["over_memory"] == 0

    play(short_path, scene)


def test_files_in_memory_over_the_bound_end_the_sandbox(short_path: Path) -> None:
    limits = Limits(total_bytes=32 * MIB, disk_bytes=64 * MIB)

    async def scene(keeper: Keeper, link: Link) -> None:
        sandbox = await link.start(Spec(limits=limits), OWNER)
        await link.pin(sandbox.name)
        with suppress(BoundaryError):
            await sandbox.exec(
                ["sh", "-c", "head -c 50000000 /dev/zero > f; sleep 60"], timeout_s=S
            )
        await over(lambda: keeper.counts["ended"])
        with pytest.raises(BoundaryError, match="its files in memory take") as caught:
            await link.find(OWNER)
        assert not isinstance(caught.value, SandboxGone)

    play(short_path, scene)


def test_a_shared_directory_over_the_bound_ends_the_sandbox(short_path: Path) -> None:
    limits = Limits(disk_bytes=8 * MIB)

    async def scene(keeper: Keeper, link: Link) -> None:
        sandbox = await link.start(Spec(limits=limits), OWNER)
        script = "for i in 1 2 3; do head -c 5000000 /dev/zero > /shared/$i; done; sleep 60"
        with suppress(BoundaryError):
            await sandbox.exec(["sh", "-c", script], timeout_s=S)
        await over(lambda: keeper.counts["ended"])
        assert keeper.figures()["over_disk"] == 1

    play(short_path, scene)


async def over(found: Callable[[], object]) -> None:
    async with asyncio.timeout(S):
        while not found():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_without_a_keeper_a_task_is_told(short_path: Path) -> None:
    async def ask() -> None:
        with pytest.raises(BoundaryError, match="cannot be reached"):
            await Link(short_path / "nobody", 0.1).start(Spec(), OWNER)
        with pytest.raises(BoundaryError, match="no `sandboxes`"):
            await AttemptSandboxes(None, OWNER).open(Spec())

    asyncio.run(ask())
