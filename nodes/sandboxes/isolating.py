"""What both providers with namespaces do: a record, a program that holds the sandbox up, its end.

Job: start, remove and close around one program per sandbox; a provider says which program.
Does not know: bwrap, Apptainer, who owns a sandbox.
Invariants: the record is on disk before the sandbox is; a start that fails or is cancelled leaves
nothing. Nobody inside can make a user namespace.
"""

import asyncio
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.errors import BoundaryError

from .contract import Owner, Spec
from .enter import start_time
from .entrance import Entrance
from .ground import new_record, prepare
from .inside import Inside
from .lifelines import Lifelines
from .records import Record, forget_record, remove_tree, write_record

ARRANGE_S = 30.0


class Isolating(ABC):
    """Starts sandboxes; `base` holds their directories, `records` their records.

    `images` are paths by name, "" the one that a task gets without a name.
    """

    name: str

    def __init__(self, base: Path, records: Path, images: dict[str, str] | None = None) -> None:
        self._base = base
        self._records = records
        self._images = images or {}
        self._entrance = Entrance()
        self._lifelines = Lifelines(base / "stage")

    async def start(self, spec: Spec, owner: Owner | None) -> Inside:
        """Start a sandbox. Raises: BoundaryError("sandbox")."""
        prepare(self._base, self._records)
        record = new_record(self.name, self._base, spec, owner, self._before_path(spec))
        write_record(self._records, record)
        try:
            record = await self._up(record, spec)
            write_record(self._records, record)
        except BaseException:
            await asyncio.shield(self.remove(record))
            raise
        return Inside(record, self._entrance, lambda: self.remove(record))

    def _before_path(self, _spec: Spec) -> str:
        """Return what stands before the usual PATH."""
        return ""

    @abstractmethod
    async def _up(self, record: Record, spec: Spec) -> Record:
        """Start the program of a sandbox; return its record with the first process inside."""

    async def _spawn(
        self,
        record: Record,
        command: list[str],
        environment: dict[str, str],
        sources: list[str],
        over: dict[str, str],
    ) -> Record:
        await self._lifelines.spawn(record, command, environment, sources, over)
        pid = await self._lifelines.first(record.name)
        record = replace(record, pid=pid, started=start_time(pid))
        await self._arrange(record, "seal")
        return record

    async def _arrange(self, record: Record, operation: str, **more: Any) -> None:
        """Do in a sandbox what only its starter may: see `enter`."""
        target = {"pid": record.pid, "started": record.started, "uid": record.uid}
        request = {**target, "operation": operation, **more}
        done = await self._entrance.run(request, b"", ARRANGE_S, 0)
        if done.exit_code != 0:
            raise BoundaryError("sandbox", f"{operation}: not done within {ARRANGE_S:g} s")

    async def remove(self, record: Record) -> None:
        """End a sandbox and remove what it had. Raises: BoundaryError("sandbox")."""
        await self._lifelines.end(record)
        await asyncio.to_thread(remove_tree, Path(record.directory))
        forget_record(self._records, record.name)

    async def close(self) -> None:
        """Close the way in; every sandbox that this object started ends with it."""
        self._entrance.close()
        await self._lifelines.close()
