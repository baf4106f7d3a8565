"""A repository in a sandbox: put there, changed by an agent, and tested.

Job: prepare a repository at its commit, take the difference, apply patches, run tests.
Does not know: models, rewards, or which tests should pass.
Invariants: what the agent's sandbox says is a patch and nothing else; tests run in another one. A
step that fails without the agent's doing is a BoundaryError.
"""

import os
import secrets
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import orjson

from engine.errors import BoundaryError

from ..sandboxes.contract import Finished, Sandbox, SandboxFileError
from .swe_control import failing, function_of

UNPACKED = "/work/repo"
ARCHIVE = "/work/.archive.tar.gz"
GZIP = b"\x1f\x8b"
ARCHIVE_BYTES = 256 * 1024 * 1024
MOST_BYTES = 4_000_000  # of a file of tests
PATCH = "/work/.change.patch"
RUNNER = "/work/.runner.py"
STEP_S = 300.0
WALL_TIMES = 5.0
GIT = (
    "git -c user.name=rollmq -c user.email=rollmq@localhost -c safe.directory='*' "
    "-c core.hooksPath=/dev/null -c core.fsmonitor=false -c commit.gpgsign=false"
)
DECIDES = (  # files that decide how tests run and count: a patch does not reach them
    *("*conftest.py", "*sitecustomize.py", "*usercustomize.py", "*.pth", "*pytest.py"),
    *("pytest.ini", ".pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml"),
)


class Repository:
    """A repository in a sandbox; `await prepare(...)` first."""

    def __init__(self, sandbox: Sandbox, path: str = "") -> None:
        self._sandbox = sandbox
        self.path = path or UNPACKED
        self._base = ""

    async def prepare(
        self, archive: str, commit: str, files: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Unpack `archive`, a tar.gz of this host, and write `files`; then go to `commit`.

        Each may be empty: then the repository is there already, or stays as it is.

        Raises: BoundaryError("sandbox"), without retry where the instance itself is at fault.
        """
        if archive:
            await self._put(ARCHIVE, read_archive(archive))
            where = shlex.quote(self.path)
            unpack = f"mkdir -p {where} && tar -xzf {ARCHIVE} --strip-components=1 -C {where}"
            await self._must(f"{unpack} && rm {ARCHIVE}", cwd="/work")
        for path, text in files.items():
            await self.write(path, text.encode())
        start = f"{GIT} init -q && {GIT} add -A -f && {GIT} commit -q -m base"
        await self._must(f"test -e .git || {{ {start}; }}")
        if commit:
            await self._must(f"{GIT} checkout -q {shlex.quote(commit)}")
        found = await self._must(f"{GIT} rev-parse HEAD")
        self._base = found.stdout.decode("ascii", "replace").strip()

    async def patch(self) -> str:
        """Return what was changed since, as a patch; empty if that cannot be told any more."""
        kept_out = "':!*.pyc' ':!*__pycache__*'"
        diff = f"{GIT} diff --cached --binary --no-ext-diff --no-textconv --no-color {self._base}"
        script = f"{GIT} add -A -- . {kept_out} && {diff}"
        told = await self._sandbox.exec(["sh", "-c", script], timeout_s=STEP_S, cwd=self.path)
        if told.exit_code != 0 or told.cut:
            return ""
        return told.stdout.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()

    async def apply(self, patch: str, keep_out: Iterable[str] = ()) -> bool:
        """Apply a patch, all but the files kept out; return whether it applied."""
        await self._put(PATCH, patch.encode())
        left = " ".join(f"--exclude={shlex.quote(pattern)}" for pattern in keep_out)
        script = f"{GIT} apply --whitespace=nowarn {left} {PATCH}"
        told = await self._sandbox.exec(["sh", "-c", script], timeout_s=STEP_S, cwd=self.path)
        return told.exit_code == 0

    async def outcomes(self, files: Sequence[str], cpu_s: float) -> dict[str, str]:
        """Run the tests of some files; return outcomes by test id, none if nothing was reported.

        Raises: BoundaryError("sandbox") if the sandbox has no pytest.
        """
        await self._must("python3 -c 'import pytest'")
        await self._put(RUNNER, (Path(__file__).parent / "swe_runner.py").read_bytes())
        nonce = secrets.token_hex(16)
        ran = await self._sandbox.exec(
            ["python3", RUNNER, *files],
            stdin=nonce.encode(),
            timeout_s=WALL_TIMES * cpu_s,
            cwd=self.path,
            environment={"PYTHONDONTWRITEBYTECODE": "1"},
        )
        return read_report(ran.stdout, nonce)

    async def make_fail(self, ids: Iterable[str]) -> set[str]:
        """Change the files of tests so that these tests fail at their end; return those changed.

        Raises: BoundaryError("sandbox").
        """
        functions: dict[str, dict[str, list[str]]] = {}
        for each in ids:
            file, function = function_of(each)
            functions.setdefault(file, {}).setdefault(function, []).append(each)
        changed: set[str] = set()
        for file, wanted in functions.items():
            with suppress(SandboxFileError, UnicodeDecodeError):
                text = (await self._sandbox.read(f"{self.path}/{file}", MOST_BYTES)).decode()
                broken, found = failing(text, wanted)
                await self.write(file, broken.encode())
                changed.update(each for name in found for each in wanted[name])
        return changed

    async def write(self, path: str, data: bytes) -> None:
        """Write a file of the repository. Raises: BoundaryError("sandbox")."""
        await self._put(f"{self.path}/{path}", data)

    async def _put(self, path: str, data: bytes) -> None:
        try:
            await self._sandbox.write(path, data)
        except SandboxFileError as wrong:
            raise BoundaryError("sandbox", f"{path}: {wrong.strerror}") from wrong

    async def _must(self, script: str, cwd: str = "") -> Finished:
        done = await self._sandbox.exec(
            ["sh", "-c", script], timeout_s=STEP_S, cwd=cwd or self.path
        )
        if done.exit_code != 0:
            why = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-300:]
            how = "took too long" if done.timed_out else f"exit code {done.exit_code}"
            raise BoundaryError("sandbox", f"{script[:80]}: {how}: {why}", retry=done.timed_out)
        return done


def read_report(written: bytes, nonce: str) -> dict[str, str]:
    """Return the outcomes that a runner reported with this nonce; none if it did not."""
    try:
        report = orjson.loads(written)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(report, dict) or report.get("nonce") != nonce:
        return {}
    tests = report.get("tests")
    return {str(k): str(v) for k, v in tests.items()} if isinstance(tests, dict) else {}


def changed_files(patch: str) -> list[str]:
    """Return the files that a patch writes."""
    lines = [line for line in patch.splitlines() if line.startswith("+++ b/")]
    return [line.removeprefix("+++ b/").split("\t")[0] for line in lines]


def read_archive(path: str) -> bytes:
    """Return a gzip file of this host: a task names it, so it is no other file, pipe or device.

    Raises: BoundaryError("handler"), without retry.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            is_plain = stat.S_ISREG(os.fstat(descriptor).st_mode)
            data = file.read(ARCHIVE_BYTES + 1) if is_plain else b""
    except (OSError, ValueError) as wrong:
        why = f"{path!r}: {getattr(wrong, 'strerror', None) or wrong}"
        raise BoundaryError("handler", why, retry=False) from wrong
    if not data.startswith(GZIP) or len(data) > ARCHIVE_BYTES:
        why = f"{path!r} is no gzip file of at most {ARCHIVE_BYTES} bytes"
        raise BoundaryError("handler", why, retry=False)
    return data
