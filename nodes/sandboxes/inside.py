"""A sandbox that runs, as its users have it: a record and a way in.

Job: the contract's `Sandbox` for every provider, from a record alone, in any process of the host.
Does not know: how sandboxes are started and stopped; it is given a function for the latter.
Invariants: paths are those inside, and are resolved inside.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from engine.errors import BoundaryError

from .contract import NOTHING, Argv, Entries, Entry, Finished, SandboxFileError
from .entrance import Entrance, enter_command
from .records import MARK, Record

FILE_S = 60.0  # one operation on files; an overloaded disk, or a file system that hangs
LIST_BYTES = 16 * 1024 * 1024
SHARED = "/shared"


class Inside:
    """A started sandbox; satisfies `contract.Sandbox`."""

    def __init__(
        self, record: Record, entrance: Entrance, stop: Callable[[], Awaitable[None]]
    ) -> None:
        self.record = record
        self._entrance = entrance
        self._stop = stop

    @property
    def name(self) -> str:
        """Its name."""
        return self.record.name

    @property
    def provider(self) -> str:
        """Its provider's name."""
        return self.record.provider

    @property
    def shared_dir(self) -> Path:
        """The host's directory that is bound into this sandbox alone."""
        return self.record.shared_dir

    @property
    def shared_inside(self) -> str:
        """Where that directory is inside."""
        return SHARED if self.record.pid else str(self.record.shared_dir)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float,
        cwd: str = "",
        environment: Mapping[str, str] = NOTHING,
    ) -> Finished:
        """Run a program to its end; see `contract.Sandbox.exec`. Raises: BoundaryError."""
        request = self._target(cwd, environment) | {"argv": list(argv)}
        most_bytes = self.record.limits.output_bytes
        return await self._entrance.run(request, stdin, timeout_s, most_bytes)

    def terminal(self, argv: Sequence[str]) -> Argv:
        """Return the host's argv for a pseudo-terminal; see `contract.Sandbox.terminal`."""
        return self._command("tty", argv)

    def inside(self, argv: Sequence[str]) -> Argv:
        """Return the host's argv for plain streams; see `contract.Sandbox.inside`."""
        return self._command("plain", argv)

    async def read(self, path: str, most_bytes: int) -> bytes:
        """Return a regular file's bytes. Raises: SandboxFileError; BoundaryError("sandbox")."""
        extra = {"most_bytes": most_bytes}
        return await self._on_file("read", path, b"", extra, most_bytes)

    async def write(self, path: str, data: bytes) -> None:
        """Write a regular file. Raises: SandboxFileError; BoundaryError("sandbox")."""
        await self._on_file("write", path, data, {}, 0)

    async def list(self, path: str) -> Entries:
        """Return a directory's entries. Raises: SandboxFileError; BoundaryError("sandbox")."""
        text = await self._on_file("list", path, b"", {}, LIST_BYTES)
        return [Entry(*entry) for entry in orjson.loads(text)]

    async def stop(self) -> None:
        """End and remove everything. Raises: BoundaryError("sandbox")."""
        await self._stop()

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.record.is_alive()

    def renamed(self, record: Record) -> "Inside":
        """Return the same sandbox under a changed record."""
        return Inside(record, self._entrance, self._stop)

    async def _on_file(
        self, operation: str, path: str, data: bytes, extra: dict[str, Any], most_bytes: int
    ) -> bytes:
        if "\0" in path:
            raise SandboxFileError(22, "a path cannot hold a null character")
        asked = {"operation": operation, "argv": [self._translated(path)], **extra}
        request = self._target("", NOTHING) | asked
        done = await self._entrance.run(request, data, FILE_S, max(most_bytes, 4096))
        if done.exit_code == 0:
            return done.stdout
        told = done.stderr.decode("ascii", "replace")
        if done.exit_code == 1 and told.isdigit():
            raise SandboxFileError(int(told), os.strerror(int(told)), path)
        if done.timed_out:
            raise BoundaryError("sandbox", f"{operation} {path} took over {FILE_S:g} s")
        raise SandboxFileError(5, told.strip() or f"status {done.exit_code}", path)

    def _command(self, mode: str, argv: Sequence[str]) -> Argv:
        target = orjson.dumps(self._target("", NOTHING)).decode()
        return [*enter_command(), target, mode, *argv]

    def _target(self, cwd: str, environment: Mapping[str, str]) -> dict[str, Any]:
        record = self.record
        marked = {} if record.pid else {MARK: record.name}
        return {
            "pid": record.pid,
            "started": record.started,
            "uid": record.uid,
            "limits": asdict(record.limits),
            "cwd": self._translated(cwd or record.workdir),
            "workdir": self._translated(record.workdir),
            "environment": {**record.environment, **environment, **marked},
        }

    def _translated(self, path: str) -> str:
        """Return a path as programs see it: without namespaces /work and /tmp lie elsewhere."""
        if self.record.pid:
            return path
        for name in ("work", "tmp"):
            if path == f"/{name}" or path.startswith(f"/{name}/"):
                return self.record.directory + path
        return path
