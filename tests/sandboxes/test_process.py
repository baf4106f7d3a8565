"""How the provider without namespaces finds its processes."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodes.sandboxes.contract import Spec
from nodes.sandboxes.enter import start_time
from nodes.sandboxes.process import Process
from nodes.sandboxes.records import MARK, kill_marked

from ..sandbox_kit import OWNER, leftovers

S = 60.0
LOOKS = 20_000  # an exec shows no environment for a three-thousandth of such a process's time
UNENDING = 'exec /bin/sh "$0"\n'


@pytest.fixture
def restless(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Return a marked process that does nothing but run itself anew."""
    (tmp_path / "script").write_text(UNENDING, encoding="ascii")
    command = ["/bin/sh", str(tmp_path / "script")]
    process = subprocess.Popen(command, env={MARK: "sb-restless"})
    yield process
    process.kill()
    process.wait(S)


def test_a_process_is_found_while_it_starts_another_program(
    restless: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    only = Path(f"/proc/{restless.pid}")
    monkeypatch.setattr("nodes.sandboxes.records.Path.glob", lambda *_: iter([only]))
    monkeypatch.setattr("nodes.sandboxes.records.kill", lambda *_: os.open("/", os.O_RDONLY))
    assert {kill_marked("sb-restless") for _ in range(LOOKS)} == {1}


def test_the_end_of_a_sandbox_ends_what_cannot_keep_still(short_path: Path) -> None:
    async def scene() -> int:
        provider = Process(short_path / "b", short_path / "records")
        sandbox = await provider.start(Spec(), OWNER)
        await sandbox.write("/tmp/script", UNENDING.encode())
        command = "setsid sh $TMPDIR/script > /dev/null & echo $!"
        left = await sandbox.exec(["sh", "-c", command], timeout_s=S)
        await sandbox.stop()
        await provider.close()
        return int(left.stdout)

    pid = asyncio.run(scene())
    assert start_time(pid) == 0
    assert leftovers(short_path) == []
