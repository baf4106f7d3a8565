"""Plain processes in a temporary directory: no isolation at all, for machines without namespaces.

Job: the contract with nothing to enforce it but resource limits; the topology has to say `unsafe`.
Does not know: who asked for it.
Invariants: every process carries the sandbox's name in its environment and is found by it at the
end; one that clears its environment is not.
"""

import asyncio
import os
from pathlib import Path

from engine.errors import BoundaryError

from .contract import Owner, Spec
from .entrance import Entrance
from .ground import HOST_BIN, environment
from .inside import Inside
from .places import make_base, make_shared, new_name
from .records import Record, forget_record, kill_marked, remove_tree, write_record

ROUNDS = 20  # of looking for processes: each may have forked since the last


class Process:
    """Starts sandboxes that are none."""

    name = "process"

    def __init__(self, base: Path, records: Path) -> None:
        self._base = base
        self._records = records
        self._entrance = Entrance()

    async def start(self, spec: Spec, owner: Owner | None) -> Inside:
        """Make a directory. Raises: BoundaryError("sandbox")."""
        if spec.image:
            why = "the provider process has no images"
            raise BoundaryError("sandbox", why, retry=False)
        make_base(self._base)
        self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = new_name()
        directory = self._base / name
        places = {"HOME": str(directory / "work"), "TMPDIR": str(directory / "tmp")}
        record = Record(
            *(name, self.name, "", 0, 0, os.getuid(), str(directory), spec.workdir),
            *(spec.limits, {**environment(spec, HOST_BIN), **places, **spec.environment}),
            owner=owner,
        )
        write_record(self._records, record)
        make_shared(directory, os.getuid())
        for each in ("work", "tmp"):
            (directory / each).mkdir(mode=0o700)
        return Inside(record, self._entrance, lambda: self.remove(record))

    async def remove(self, record: Record) -> None:
        """Kill what carries the mark and remove the directory. Raises: BoundaryError."""
        for _ in range(ROUNDS):
            if not await asyncio.to_thread(kill_marked, record.name):
                break
            await asyncio.sleep(0.01)
        else:
            raise BoundaryError("sandbox", f"{record.name} makes processes faster than they end")
        await asyncio.to_thread(remove_tree, Path(record.directory))
        forget_record(self._records, record.name)

    async def close(self) -> None:
        """Close the way in."""
        self._entrance.close()
