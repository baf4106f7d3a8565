"""Tool `bash`: one persistent shell for a rollout.

    bash(command="cd /work && make", timeout_s=60)   ->   output, then "[exit code 0]"

Job: the tool's schema, and what the model is told of each way in which a command can end.
Does not know: terminals (`shell`), or the sandbox's provider.
Invariants: commands run one after the other. What happened to the shell is always said: it was
kept, or it was replaced and its state is lost. docs/tools.md lists the answers.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from ..agent import Tool, ToolError
from ..sandboxes.contract import Sandbox
from .shell import Ran, Shell

DESCRIPTION = (
    "Run a command in a bash shell that stays: directory, variables, functions and background jobs "
    "are kept from call to call. Standard input is empty. Long output is cut in the middle."
)
LOST = "a new shell was started; directory, variables and background jobs are lost"


@dataclass(frozen=True, slots=True)
class BashSettings:
    """timeout_s: of a command that names none; most_timeout_s: the longest that one may name."""

    timeout_s: float = 60.0
    most_timeout_s: float = 600.0
    workdir: str = ""


class Bash:
    """The tool and its shell, which is started at the first call; close it when done."""

    def __init__(self, sandbox: Sandbox, settings: BashSettings = BashSettings()) -> None:
        self._settings = settings
        self._shell = Shell(sandbox, settings.workdir)
        self._turn = asyncio.Lock()
        self.tool = Tool("bash", DESCRIPTION, _parameters(settings), self.call)

    async def call(
        self, command: str = "", timeout_s: float | None = None, *, restart: bool = False
    ) -> str:
        """Run a command and return what the model is told.

        Raises: ToolError if there is nothing to run, or if the command cannot be handed over;
        BoundaryError("sandbox") if no shell can be started.
        """
        if not (command.strip() or restart):
            raise ToolError("command is empty")
        async with self._turn:
            if restart or not self._shell.is_ready:
                await self._shell.restart()
            if restart:
                return f"[{LOST}]"
            try:
                ran = await self._shell.run(command, timeout_s or self._settings.timeout_s)
            except OSError as wrong:
                raise ToolError(f"the command was not run: {wrong.strerror}") from None
            if ran.ending in {"replaced", "exited"}:
                await self._shell.restart()
        return told(ran)

    async def close(self) -> None:
        """End the shell. Raises: BoundaryError("sandbox") if it does not die."""
        await self._shell.close()


def told(ran: Ran) -> str:
    """Return how a command ended in words for the model: its output, then one line in brackets."""
    output = ran.output.removesuffix("\n")
    return f"{output}\n[{_how(ran)}]" if output else f"[{_how(ran)}]"


def _how(ran: Ran) -> str:
    after = f"{ran.seconds:.0f} s"
    match ran.ending:
        case "":
            return f"exit code {ran.exit_code}"
        case "interrupted":
            return f"interrupted after {after}; exit code {ran.exit_code}; the shell was kept"
        case "killed":
            return f"killed after {after}; exit code {ran.exit_code}; the shell was kept"
        case "replaced":
            return f"killed after {after} with its shell; {LOST}"
        case "exited":
            return f"the shell ended with {_status(ran.exit_code)}; {LOST}"


def _status(code: int | None) -> str:
    return f"exit code {code}" if code is None or code >= 0 else f"signal {-code}"


def _parameters(settings: BashSettings) -> dict[str, Any]:
    most = settings.most_timeout_s
    wait = f"seconds until it is interrupted; {settings.timeout_s:g} if left out"
    return {
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "what to run; may have several lines"},
            "timeout_s": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": most,
                "description": wait,
            },
            "restart": {"type": "boolean", "description": "start a new shell instead"},
        },
        "additionalProperties": False,
    }
