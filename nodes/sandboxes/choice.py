"""Which provider makes a host's sandboxes.

Job: from the topology's section and what is installed to a provider, or to why there is none.
Does not know: who uses it.
Invariants: `process` is never chosen by itself.
"""

from pathlib import Path
from typing import Protocol

from engine.errors import BoundaryError
from engine.topology import SandboxSpec

from . import apptainer, bubblewrap
from .apptainer import Apptainer
from .bubblewrap import Bubblewrap
from .contract import Limits, Owner, Spec
from .inside import Inside
from .process import Process
from .records import Record

BASE = "base"


class Maker(Protocol):
    """A provider as the keeper uses it: also for sandboxes that nobody owns yet."""

    name: str

    async def start(self, spec: Spec, owner: Owner | None) -> Inside:
        """Start one. Raises: BoundaryError("sandbox")."""
        ...

    async def remove(self, record: Record) -> None:
        """End one by its record, whoever started it. Raises: BoundaryError("sandbox")."""
        ...

    async def close(self) -> None:
        """Let go of what is held open."""
        ...


class Missing:
    """In place of a provider: refuses, and says why."""

    def __init__(self, name: str, why: str) -> None:
        self.name = name
        self._why = why

    async def start(self, spec: Spec, owner: Owner | None) -> Inside:
        """Refuse. Raises: BoundaryError("sandbox"), without retry."""
        del spec, owner
        raise BoundaryError("sandbox", self._why, retry=False)

    async def remove(self, record: Record) -> None:
        """Refuse. Raises: BoundaryError("sandbox"), without retry."""
        raise BoundaryError("sandbox", f"{record.name}: {self._why}", retry=False)

    async def close(self) -> None:
        """Do nothing."""


def choose(spec: SandboxSpec) -> str:
    """Return the name of the provider that a host uses: one of the three, or `none`."""
    if spec.provider != "auto":
        return str(spec.provider)
    if spec.images and apptainer.is_available():
        return "apptainer"
    return "bubblewrap" if bubblewrap.is_available() else "none"


def make(name: str, spec: SandboxSpec, base: Path, records: Path) -> Maker:
    """Return a provider by its name."""
    images = {("" if key == BASE else key): path for key, path in spec.images.items()}
    if name == "apptainer":
        return Apptainer(base, records, images)
    if name == "bubblewrap":
        return Bubblewrap(base, records, images)
    if name == "process":
        return Process(base, records)
    return Missing(name, "neither bubblewrap nor Apptainer with an image is there")


def most(spec: SandboxSpec) -> Limits:
    """Return the most that a task may ask for."""
    return Limits(
        memory_bytes=spec.memory_bytes,
        total_bytes=spec.total_bytes,
        cpu_s=spec.cpu_s,
        processes=spec.processes,
        wall_s=spec.wall_s,
        disk_bytes=spec.disk_bytes,
    )
