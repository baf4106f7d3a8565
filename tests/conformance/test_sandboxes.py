"""What every provider of sandboxes keeps to."""

import asyncio
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from ptyprocess import PtyProcess

from engine.errors import BoundaryError
from nodes.sandboxes.contract import Sandbox, SandboxFileError

from ..sandbox_kit import MIB, SMALL, Play, S, everywhere, until

MESS = "mkdir deep; mkfifo fifo; ln -s loop loop"


@everywhere
def test_a_program_gives_status_output_and_errors_apart(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        done = await sandbox.exec(
            ["sh", "-c", "cat; echo oh >&2; exit 3"], stdin=b"in", timeout_s=S
        )
        assert (done.exit_code, done.stdout, done.stderr) == (3, b"in", b"oh\n")
        assert not done.cut
        assert not done.timed_out

    play(scene)


@everywhere
def test_a_program_that_a_signal_ends_says_so_and_one_that_is_missing_is_a_result(
    play: Play,
) -> None:
    async def scene(sandbox: Sandbox) -> None:
        done = await sandbox.exec(["sh", "-c", "kill -9 $$"], timeout_s=S)
        assert done.exit_code == -signal.SIGKILL
        done = await sandbox.exec(["no-such-program"], timeout_s=S)
        assert done.exit_code == 127
        assert b"No such file" in done.stderr
        done = await sandbox.exec(["/etc/hosts"], timeout_s=S)
        assert done.exit_code == 126
        done = await sandbox.exec(["true"], cwd="/work/nowhere", timeout_s=S)
        assert done.exit_code == 127

    play(scene)


@everywhere
def test_a_timeout_kills_the_group_and_keeps_what_was_written(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        command = "sleep 4710 & echo begun; sleep 4710"
        done = await sandbox.exec(["sh", "-c", command], timeout_s=1.0)
        assert done.timed_out
        assert (done.exit_code, done.stdout) == (None, b"begun\n")
        done = await sandbox.exec(["sh", "-c", "ps ax | grep '[s]leep 4710'"], timeout_s=S)
        assert done.stdout == b""

    play(scene)


@everywhere
def test_output_is_cut_while_it_is_read_and_the_program_ends_by_itself(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        done = await sandbox.exec(["sh", "-c", "head -c 30000000 /dev/zero; exit 4"], timeout_s=S)
        assert done.exit_code == 4
        assert (len(done.stdout), done.cut) == (SMALL.output_bytes, True)

    play(scene)


@everywhere
def test_a_child_that_holds_the_output_open_does_not_delay_the_end(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        done = await sandbox.exec(["sh", "-c", "sleep 1000 & echo $!"], timeout_s=S)
        assert done.exit_code == 0
        assert done.seconds < S / 2
        alive = await sandbox.exec(["kill", "-0", done.stdout.decode().strip()], timeout_s=S)
        assert alive.exit_code == 0

    play(scene)


@everywhere
def test_a_program_that_reads_nothing_of_its_input_ends(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        done = await sandbox.exec(["true"], stdin=bytes(10 * MIB), timeout_s=S)
        assert done.exit_code == 0

    play(scene)


@everywhere
def test_a_call_that_is_cancelled_ends_its_program(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        call = asyncio.ensure_future(sandbox.exec(["sleep", "4711"], timeout_s=S))
        look = ["sh", "-c", "ps ax | grep -c '[s]leep 4711'"]
        await until(sandbox, look, b"1\n")
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        await until(sandbox, look, b"0\n")

    play(scene)


@everywhere
def test_the_environment_is_clean_and_what_was_asked_for_is_in_it(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "do not tell")

    async def scene(sandbox: Sandbox) -> None:
        command = ["sh", "-c", "env; cat /proc/[0-9]*/environ 2>/dev/null"]
        done = await sandbox.exec(command, environment={"MINE": "1"}, timeout_s=S)
        lines = done.stdout.splitlines()
        assert b"MINE=1" in lines
        assert b"ASKED=for" in lines
        names = {line.split(b"=")[0] for line in lines if b"SECRET" in line}
        assert sandbox.provider == "process" or not names

    play(scene, environment={"ASKED": "for"})


@everywhere
def test_files_are_written_read_and_listed(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        data = bytes(range(256)) * 1000
        await sandbox.write("/work/deep/down/data", data)
        await sandbox.write("deep/short", b"long before")
        await sandbox.write("deep/short", b"abc")
        assert await sandbox.read("deep/down/data", MIB) == data
        assert await sandbox.read("/work/deep/short", 2) == b"ab"
        await sandbox.exec(["ln", "-s", "short", "/work/deep/link"], cwd="/work", timeout_s=S)
        listed = {e.name: (e.kind, e.size_bytes) for e in await sandbox.list("deep")}
        assert listed["short"] == ("file", 3)
        assert listed["down"] == ("directory", 0)
        done = await sandbox.exec(["sh", "-c", "cat deep/short"], timeout_s=S)
        assert done.stdout == b"abc"

    play(scene)


@everywhere
@pytest.mark.parametrize("path", ["nothing", "deep", "fifo", "/dev/zero", "a\0b", "loop"])
def test_what_is_no_regular_file_is_refused_at_once(play: Play, path: str) -> None:
    async def scene(sandbox: Sandbox) -> None:
        made = await sandbox.exec(["sh", "-c", MESS], timeout_s=S)
        assert made.exit_code == 0
        with pytest.raises(SandboxFileError):
            await sandbox.read(path, 10)

    play(scene)


@everywhere
def test_programs_start_where_the_task_says(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        await sandbox.write("here", b"x")
        done = await sandbox.exec(["sh", "-c", "pwd; ls"], timeout_s=S)
        where, what = done.stdout.splitlines()
        assert where.endswith(b"/work/deep/down")
        assert what == b"here"

    play(scene, workdir="/work/deep/down")


@everywhere
def test_the_shared_directory_is_seen_on_both_sides(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        (sandbox.shared_dir / "from-host").write_bytes(b"hello")
        script = f"cat {sandbox.shared_inside}/from-host; echo back > {sandbox.shared_inside}/out"
        done = await sandbox.exec(["sh", "-c", script], timeout_s=S)
        assert done.stdout == b"hello"
        assert (sandbox.shared_dir / "out").read_bytes() == b"back\n"
        assert len(os.fsencode(sandbox.shared_dir)) < 60

    play(scene)


@everywhere
def test_a_terminal_is_the_controlling_one_of_a_session_inside(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        shell = PtyProcess.spawn(sandbox.terminal(["bash", "--norc", "--noediting", "-i"]))
        try:
            said = await asyncio.to_thread(_converse, shell)
        finally:
            shell.close(force=True)
        assert b"no job control" not in said
        assert b"status 130" in said
        assert b"fg /dev/" in said or b"fg not" not in said

    play(scene)


def _converse(shell: PtyProcess) -> bytes:
    said = b""
    for line, answer in (
        (b"echo rea''dy\n", b"ready"),
        (b"sleep 1000; echo status $?\n", None),
        (b"\x03", b"^C"),
        (b"echo status $?; echo do''ne\n", b"\ndone"),
    ):
        if answer is None:
            shell.write(line)
            time.sleep(0.5)
            continue
        shell.write(line)
        start = len(said)
        while answer not in said[start:]:
            said += shell.read(4096)
    return said


@everywhere
def test_a_program_on_plain_streams_ends_with_its_status_and_with_its_starter(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        def plain() -> None:
            done = subprocess.run(
                sandbox.inside(["sh", "-c", "cat; exit 5"]),
                input=b"x",
                capture_output=True,
                timeout=S,
                check=False,
            )
            assert (done.returncode, done.stdout) == (5, b"x")
            done = subprocess.run(
                sandbox.inside(["sh", "-c", "kill -15 $$"]), timeout=S, check=False
            )
            assert done.returncode == -15
            sleeper = subprocess.Popen(sandbox.inside(["sleep", "4712"]))
            time.sleep(0.5)
            sleeper.kill()
            sleeper.wait(S)

        await asyncio.to_thread(plain)
        await until(sandbox, ["sh", "-c", "ps ax | grep -c '[s]leep 4712'"], b"0\n")

    play(scene)


@everywhere
def test_what_runs_in_the_background_stays_until_the_sandbox_stops(
    play: Play, provider: str
) -> None:
    pids: list[int] = []

    async def scene(sandbox: Sandbox) -> None:
        await sandbox.exec(["sh", "-c", "setsid sleep 4713 & exit"], timeout_s=S)
        deadline = time.monotonic() + S  # setsid has its words before it is the sleeper
        while not pids:
            pids.extend(_named(b"sleep\x004713\x00"))
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    play(scene)
    assert not set(pids) & set(_named(b"sleep\x004713\x00"))


def _named(argv: bytes) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (path / "cmdline").read_bytes() == argv:
                found.append(int(path.name))
    return found


@everywhere
def test_a_stopped_sandbox_is_an_error_and_stopping_twice_is_none(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        await sandbox.stop()
        await sandbox.stop()
        if sandbox.provider != "process":
            with pytest.raises(BoundaryError, match="gone"):
                await sandbox.exec(["true"], timeout_s=S)

    play(scene)
