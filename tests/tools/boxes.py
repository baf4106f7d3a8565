"""Sandboxes for tests of tools: plain processes, and whatever isolates and is installed here."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nodes.sandboxes.contract import Sandbox, Spec

from ..plain_sandbox import PlainSandbox
from ..sandbox_kit import OWNER, make_provider, need

PROVIDERS = ("plain", "bubblewrap", pytest.param("apptainer", marks=pytest.mark.apptainer))


@asynccontextmanager
async def started(provider: str, spec: Spec | None = None) -> AsyncIterator[Sandbox]:
    """Start a sandbox for a test, and stop it after."""
    if provider == "plain":
        box = PlainSandbox()
        try:
            yield box
        finally:
            await box.stop()
        return
    need(provider)
    with tempfile.TemporaryDirectory(prefix="rq", dir="/tmp") as place:
        maker = make_provider(provider, Path(place))
        sandbox = await maker.start(spec or Spec(), OWNER)
        try:
            yield sandbox
        finally:
            await sandbox.stop()
            await maker.close()
