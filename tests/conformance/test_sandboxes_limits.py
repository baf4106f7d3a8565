"""What a sandbox may use, and what happens to who uses more."""

import asyncio
import signal

import pytest

from nodes.sandboxes.contract import Limits, Sandbox, SandboxFileError

from ..sandbox_kit import MIB, SMALL, Play, S, everywhere, isolated

BOMB = """
import os, time
n = 0
try:
    while n < 5000:
        if not os.fork():
            time.sleep(99)
        n += 1
except OSError:
    print(n)
"""


@everywhere
def test_processor_time_and_file_size_are_limited(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        done = await sandbox.exec(["sh", "-c", "while :; do :; done"], timeout_s=S)
        assert done.exit_code in {-signal.SIGXCPU, -signal.SIGKILL}
        script = "head -c 20000000 /dev/zero > big; wc -c < big"
        done = await sandbox.exec(["sh", "-c", script], timeout_s=S)
        assert int(done.stdout) <= SMALL.disk_bytes

    play(scene, Limits(cpu_s=1, disk_bytes=8 * MIB))


@everywhere
def test_memory_of_a_process_is_limited(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        script = "x = bytearray(1 << 30)"
        done = await sandbox.exec(["python3", "-c", script], timeout_s=S)
        assert done.exit_code == 1
        assert b"MemoryError" in done.stderr

    play(scene)


@isolated
def test_a_fork_bomb_ends_at_its_limit_and_the_host_does_not_notice(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        done = await sandbox.exec(["python3", "-c", BOMB], timeout_s=S)
        assert 0 < int(done.stdout) <= SMALL.processes
        outside = await asyncio.create_subprocess_exec("true")
        assert await asyncio.wait_for(outside.wait(), S) == 0
        full = await sandbox.exec(["true"], timeout_s=S)
        assert full.exit_code in {0, 126}

    play(scene)


@isolated
def test_the_disk_of_a_sandbox_fills_up_before_the_hosts(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        for place in ("/work", "/tmp", "/dev/shm"):
            script = (
                f"for i in 1 2 3 4 5; do head -c 4000000 /dev/zero > {place}/f$i || exit 9; done"
            )
            done = await sandbox.exec(["sh", "-c", script], timeout_s=S)
            assert done.exit_code == 9, place
            assert b"No space" in done.stderr
        with pytest.raises(SandboxFileError):
            await sandbox.write("/work/more", bytes(8 * MIB))

    play(scene)
