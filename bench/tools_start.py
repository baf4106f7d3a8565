"""How long until a task has a sandbox: cold, warm, and 64 at once. Called by `bench.tools`.

    python -m bench.tools_start [--image FILE.sif] [--json]

Cold: from asking a provider to a sandbox that runs programs; each provider that is installed,
Apptainer only with an image. Warm: from asking a keeper with a full pool over its socket, as a
stage's host does, to the same. What is not measured: the broker, and the first program.
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson

from engine.logs import configure
from nodes.sandboxes import apptainer, bubblewrap
from nodes.sandboxes.apptainer import Apptainer
from nodes.sandboxes.bubblewrap import Bubblewrap
from nodes.sandboxes.choice import Maker
from nodes.sandboxes.contract import Limits, Owner, Spec
from nodes.sandboxes.keeper import Keeper
from nodes.sandboxes.link import Link
from nodes.sandboxes.process import Process

OWNER = Owner("bench", 1, "bench-000000000000")
MIB = 1024 * 1024
SPEC = Spec(limits=Limits(disk_bytes=64 * MIB))
COLD, WARM, AT_ONCE, POOL = 20, 40, 64, 8
READY_S = 120.0


def providers(place: Path, image: str) -> list[Maker]:
    """Return what is installed, each with directories of its own."""
    place.chmod(0o755)
    base, records = place / "b", place / "r"
    found: list[Maker] = [Process(base, records)]
    if bubblewrap.is_available():
        found.append(Bubblewrap(base, records))
    if image and apptainer.is_available():
        found.append(Apptainer(base, records, {"": image}))
    return found


async def cold(maker: Maker, count: int = COLD) -> list[float]:
    """Return the seconds of `count` starts, one after the other."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        sandbox = await maker.start(SPEC, OWNER)
        seconds.append(time.perf_counter() - began)
        await sandbox.stop()
    return seconds


async def at_once(maker: Maker, count: int = AT_ONCE) -> tuple[float, float]:
    """Return the seconds until `count` sandboxes asked for at once have each run a program."""

    async def one() -> Any:
        sandbox = await maker.start(SPEC, OWNER)
        await sandbox.exec(["true"], timeout_s=READY_S)
        return sandbox

    began = time.perf_counter()
    sandboxes = await asyncio.gather(*(one() for _ in range(count)))
    started = time.perf_counter() - began
    await asyncio.gather(*(sandbox.stop() for sandbox in sandboxes))
    return started, time.perf_counter() - began - started


@contextlib.asynccontextmanager
async def keeping(maker: Maker, place: Path, pool: int) -> AsyncIterator[tuple[Keeper, Link]]:
    """Run a keeper with a pool, and a connection to it."""
    keeper = Keeper(maker, place / "r", place / "b", SPEC.limits, pool, [""], lambda _: maker)
    over = asyncio.Event()
    serving = asyncio.create_task(keeper.serve(place / "s" / "keeper", over, lambda: None))
    link = Link(place / "s" / "keeper")
    try:
        await _filled(keeper, pool)
        yield keeper, link
    finally:
        await link.close()
        over.set()
        await serving


async def _filled(keeper: Keeper, pool: int) -> None:
    async with asyncio.timeout(READY_S):
        while keeper.book.count("warm") < pool:  # noqa: ASYNC110 - the keeper tells nobody
            await asyncio.sleep(0.005)


async def warm(maker: Maker, place: Path, count: int = WARM) -> list[float]:
    """Return the seconds of `count` starts out of a pool that is full each time."""
    seconds = []
    async with keeping(maker, place, POOL) as (keeper, link):
        for _ in range(count):
            await _filled(keeper, POOL)
            began = time.perf_counter()
            sandbox = await link.start(SPEC, OWNER)
            seconds.append(time.perf_counter() - began)
            await sandbox.stop()
        assert keeper.counts["warm"] == count, keeper.counts
    return seconds


def measure(image: str = "") -> dict[str, dict[str, float]]:
    """Return the figures of each provider: milliseconds, and seconds of 64 at once."""
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="rq", dir="/tmp") as directory:
        for maker in providers(Path(directory), image):
            figures[maker.name] = asyncio.run(_measure(maker, Path(directory)))
    return figures


async def _measure(maker: Maker, place: Path) -> dict[str, float]:
    started = await cold(maker)
    up_s, down_s = await at_once(maker)
    lent = await warm(maker, place)
    return {
        "cold_start_p50_ms": 1000 * statistics.median(started),
        "cold_start_max_ms": 1000 * max(started),
        "warm_start_p50_ms": 1000 * statistics.median(lent),
        "warm_start_max_ms": 1000 * max(lent),
        "at_once_start_s": up_s,
        "at_once_stop_s": down_s,
    }


def main() -> None:
    """Print a table, and with --json one line at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="", help="for Apptainer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    configure("bench", "warning")
    figures = measure(options.image)
    for name, values in figures.items():
        print(name)
        for figure, value in values.items():
            print(f"  {figure:20} {value:9.2f}")
    if options.json:
        print(orjson.dumps(figures).decode())


if __name__ == "__main__":
    main()
