"""Contexts whose `sandbox` starts real sandboxes, and task kinds played with a scripted model."""

import asyncio
from contextlib import AsyncExitStack
from types import ModuleType
from typing import Any

from nodes.sandboxes.contract import Sandbox, Spec
from nodes.tasks import Output

from ..agent_kit import END, ScriptedModel, context
from .boxes import started


def play(
    kind: ModuleType, payload: dict[str, Any], *says: str, provider: str = "bubblewrap"
) -> tuple[Output, Output]:
    """Play a task through init, run and eval; return what run and eval left."""

    async def stages() -> tuple[Output, Output]:
        where = context(ScriptedModel(*(say + END for say in says)), payload)
        async with AsyncExitStack() as stack:
            boxes: list[Sandbox] = []

            async def sandbox(spec: Spec | None = None) -> Sandbox:
                boxes.append(await stack.enter_async_context(started(provider, spec)))
                return boxes[-1]

            where.sandbox = sandbox
            where.data["init"] = (await kind.init(where)).data
            ran = await kind.run(where)
            where.data["run"], where.trajectory = ran.data, ran.trajectory
            scored = kind.eval(where)
            return ran, await scored if asyncio.iscoroutine(scored) else scored

    return asyncio.run(stages())
