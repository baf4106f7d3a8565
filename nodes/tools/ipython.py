r"""Tool `ipython`: one persistent Python kernel for a rollout.

    ipython(code="x = 2\nx + 1")   ->   "3"

Job: the tool's schema, and what the model is told of each way in which code can end.
Does not know: Jupyter's protocol (`kernel`).
Invariants: code runs one piece after the other. What happened to the kernel is always said.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..agent import Tool
from ..sandboxes.contract import Sandbox
from .kernel import Executed, Kernel

DESCRIPTION = (
    "Run Python code in an IPython session that stays: variables and imports are kept from call to "
    "call. The value of the last expression is shown. Images are noted, not shown."
)
LOST = "a new session was started; variables and imports are lost"


@dataclass(frozen=True, slots=True)
class IPythonSettings:
    """timeout_s: of code that names none; most_timeout_s: the longest that a call may name."""

    timeout_s: float = 60.0
    most_timeout_s: float = 600.0
    python: Sequence[str] = ("python3",)


class IPython:
    """The tool and its kernel, which is started at the first call; close it when done."""

    def __init__(self, sandbox: Sandbox, settings: IPythonSettings = IPythonSettings()) -> None:
        self._settings = settings
        self._kernel = Kernel(sandbox, settings.python)
        self._turn = asyncio.Lock()
        self.tool = Tool("ipython", DESCRIPTION, _parameters(settings), self.call)

    async def call(self, code: str, timeout_s: float | None = None) -> str:
        """Run code and return what the model is told.

        Raises: BoundaryError("sandbox") if no kernel can be started.
        """
        async with self._turn:
            if not self._kernel.is_ready:
                await self._kernel.restart()
            ran = await self._kernel.run(code, timeout_s or self._settings.timeout_s)
            if not self._kernel.is_ready:
                await self._kernel.restart()
        return told(ran)

    async def close(self) -> None:
        """End the kernel. Raises: BoundaryError("sandbox") if it does not die."""
        await self._kernel.close()


def told(ran: Executed) -> str:
    """Return how code ended in words for the model."""
    notes = [] if ran.is_whole or ran.ending in {"killed", "died"} else ["output may be missing"]
    after = f"{ran.seconds:.0f} s"
    match ran.ending:
        case "interrupted":
            notes.append(f"interrupted after {after}; the session was kept")
        case "killed":
            notes.append(f"killed after {after} with its session; {LOST}")
        case "died":
            notes.append(f"the session ended; {LOST}")
    if not (ran.output or notes):
        notes.append("no output")
    lines = [ran.output.removesuffix("\n"), *(f"[{note}]" for note in notes)]
    return "\n".join(line for line in lines if line)


def _parameters(settings: IPythonSettings) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "code": {"type": "string"},
            "timeout_s": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": settings.most_timeout_s,
                "description": f"seconds until interrupted; {settings.timeout_s:g} if left out",
            },
        },
        "required": ["code"],
        "additionalProperties": False,
    }
