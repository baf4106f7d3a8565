"""Many sandboxes, one after the other and at once: nothing adds up."""

import asyncio
import gc
from pathlib import Path

import pytest

from nodes.sandboxes.contract import Spec

from ..sandbox_kit import OWNER, leftovers, make_provider, need

IN_ALL, AT_ONCE = 200, 8
PROVIDERS = (
    "bubblewrap",
    "process",
    pytest.param("apptainer", marks=[pytest.mark.apptainer, pytest.mark.timeout(900)]),
)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_two_hundred_sandboxes_leave_no_descriptor_process_or_file(
    provider: str, short_path: Path
) -> None:
    need(provider)

    async def one(maker: object, slots: asyncio.Semaphore) -> None:
        async with slots:
            sandbox = await maker.start(Spec(), OWNER)  # type: ignore[attr-defined]
            done = await sandbox.exec(["sh", "-c", "echo x > f; sleep 99 & exit 7"], timeout_s=60.0)
            assert done.exit_code == 7
            await sandbox.stop()

    async def many() -> tuple[int, int]:
        maker = make_provider(provider, short_path)
        slots = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(one(maker, slots) for _ in range(AT_ONCE)))
        before = descriptors()
        await asyncio.gather(*(one(maker, slots) for _ in range(IN_ALL - AT_ONCE)))
        after = descriptors()
        await maker.close()
        return before, after

    before, after = asyncio.run(many())
    assert after <= before
    assert leftovers(short_path) == []


@pytest.mark.parametrize("provider", PROVIDERS)
def test_starts_that_are_broken_off_anywhere_leave_nothing_to_the_loop(
    provider: str, short_path: Path
) -> None:
    need(provider)
    ended = []

    async def broken_off(maker: object, after_s: float) -> None:
        start = asyncio.ensure_future(maker.start(Spec(), OWNER))  # type: ignore[attr-defined]
        done, _ = await asyncio.wait([start], timeout=after_s)
        start.cancel()
        await asyncio.wait([start])
        ended.append(not done)
        if not start.cancelled():
            await start.result().stop()

    async def on_stage() -> None:
        maker = make_provider(provider, short_path)
        await asyncio.gather(*(broken_off(maker, 0.03 * number) for number in range(16)))
        await maker.close()

    asyncio.run(on_stage())
    gc.collect()  # what the loop still had would say so now
    assert any(ended) or provider == "process"
    assert leftovers(short_path) == []


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
