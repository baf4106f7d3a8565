"""The contract of sandboxes on plain processes in a temporary directory: no isolation at all."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nodes.sandboxes.contract import Entry, Finished

CLEAN = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


class PlainSandbox:
    """Processes of this machine that start in a directory of their own."""

    provider = "plain"

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="rqs", dir="/tmp"))
        self.name = self.root.name
        (self.root / "work").mkdir()
        (self.root / "s").mkdir()

    @property
    def shared_dir(self) -> Path:
        return self.root / "s"

    @property
    def shared_inside(self) -> str:
        return str(self.root / "s")

    @property
    def workdir(self) -> Path:
        return self.root / "work"

    def terminal(self, argv: Sequence[str]) -> list[str]:
        home = f"HOME={self.workdir}"
        clean = [f"{name}={value}" for name, value in CLEAN.items()]
        return ["env", "-i", home, *clean, f"--chdir={self.workdir}", *argv]

    def inside(self, argv: Sequence[str]) -> list[str]:
        return self.terminal(argv)

    def path(self, path: str) -> Path:
        if path.startswith(str(self.root)):
            return Path(path)
        return self.root / path.removeprefix("/") if path.startswith("/") else self.workdir / path

    async def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float,
        cwd: str = "",
        environment: Mapping[str, str] = {},
    ) -> Finished:
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.path(cwd) if cwd else self.workdir,
            env={**CLEAN, "HOME": str(self.workdir), **environment},
            start_new_session=True,
        )
        try:
            out, error = await asyncio.wait_for(process.communicate(stdin), timeout_s)
            code, late = process.returncode, False
        except TimeoutError:
            out, error, code, late = b"", b"", None, True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        return Finished(code, out, error, False, late, time.monotonic() - began)

    async def read(self, path: str, most_bytes: int) -> bytes:
        with self.path(path).open("rb") as file:
            return file.read(most_bytes)

    async def write(self, path: str, data: bytes) -> None:
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_bytes(data)

    async def list(self, path: str) -> list[Entry]:
        found = sorted(self.path(path).iterdir())
        return [
            Entry(
                each.name,
                "link" if each.is_symlink() else "directory" if each.is_dir() else "file",
                each.lstat().st_size,
            )
            for each in found
        ]

    async def stop(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
