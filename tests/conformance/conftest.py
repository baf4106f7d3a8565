import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodes.sandboxes.contract import Limits, Spec

from ..sandbox_kit import OWNER, SMALL, Play, Scene, leftovers, make_provider, need


@pytest.fixture
def play(provider: str, short_path: Path) -> Iterator[Play]:
    """Run a scene in a fresh sandbox; nothing may be left of it afterwards."""
    need(provider)

    def run(scene: Scene, limits: Limits = SMALL, **more: object) -> None:
        async def on_stage() -> None:
            maker = make_provider(provider, short_path)
            sandbox = await maker.start(Spec(limits=limits, **more), OWNER)
            try:
                await scene(sandbox)
            finally:
                await sandbox.stop()
                await maker.close()

        asyncio.run(on_stage())

    yield run
    assert leftovers(short_path) == []
