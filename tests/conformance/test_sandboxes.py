"""What every provider of sandboxes keeps to, and what those that isolate keep out."""

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ptyprocess import PtyProcess

from engine.errors import BoundaryError
from nodes.sandboxes.contract import Limits, Sandbox, SandboxFileError, Spec

from ..sandbox_kit import OWNER, leftovers, make_provider, need

S = 60.0
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
MESS = "mkdir deep; mkfifo fifo; ln -s loop loop"
MIB = 1024 * 1024
SMALL = Limits(memory_bytes=256 * MIB, processes=32, disk_bytes=8 * MIB, output_bytes=4096)
ISOLATING = ("bubblewrap", pytest.param("apptainer", marks=pytest.mark.apptainer))
ALL = (*ISOLATING, "process")

Play = Callable[..., None]
Scene = Callable[[Sandbox], Awaitable[None]]
everywhere = pytest.mark.parametrize("provider", ALL)
isolated = pytest.mark.parametrize("provider", ISOLATING)


@pytest.fixture
def play(provider: str, short_path: Path) -> Iterator[Play]:
    """Run a scene in a fresh sandbox; nothing may be left of it afterwards."""
    need(provider)

    def run(scene: Scene, limits: Limits = SMALL, **more: object) -> None:
        async def on_stage() -> None:
            maker = make_provider(provider, short_path)
            sandbox = await maker.start(Spec(limits=limits, **more), OWNER)
            try:
                await scene(sandbox)
            finally:
                await sandbox.stop()
                await maker.close()

        asyncio.run(on_stage())

    yield run
    assert leftovers(short_path) == []


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
        await _until(sandbox, look, b"1\n")
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        await _until(sandbox, look, b"0\n")

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


@isolated
def test_nobody_inside_holds_on_to_what_the_sandbox_hangs_by(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        for way in ("<", ">", "<>"):
            done = await sandbox.exec(["sh", "-c", f": 3{way} /proc/1/fd/0"], timeout_s=S)
            assert done.exit_code != 0, way

    play(scene)


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
        await _until(sandbox, ["sh", "-c", "ps ax | grep -c '[s]leep 4712'"], b"0\n")

    play(scene)


@everywhere
def test_what_runs_in_the_background_stays_until_the_sandbox_stops(
    play: Play, provider: str
) -> None:
    pids: list[int] = []

    async def scene(sandbox: Sandbox) -> None:
        await sandbox.exec(["sh", "-c", "setsid sleep 4713 & exit"], timeout_s=S)
        await _until(sandbox, ["sh", "-c", "ps ax | grep -c '[s]leep 4713'"], b"1\n")
        pids.extend(_named(b"sleep\x004713\x00"))
        assert pids

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


def is_there(path: str) -> bool:
    return Path(path).exists()


@isolated
def test_nothing_of_the_host_can_be_written(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        for path in ("/etc/x", "/usr/x", "/x", "/dev/x", "/bin/x", "/proc/sys/kernel/hostname"):
            done = await sandbox.exec(["sh", "-c", f"echo x > {path}"], timeout_s=S)
            assert done.exit_code != 0 or not is_there(path), path

    play(scene)


@isolated
def test_host_files_and_processes_are_not_there(play: Play, short_path: Path) -> None:
    (short_path / "secret").write_text("4714")
    (short_path / "secret").chmod(0o644)

    async def scene(sandbox: Sandbox) -> None:
        for path in (short_path / "secret", Path("/etc/shadow"), Path("/proc/1/root/etc/shadow")):
            done = await sandbox.exec(["cat", str(path)], timeout_s=S)
            assert done.exit_code == 1, path
        done = await sandbox.exec(["sh", "-c", "ls -d /proc/[0-9]*"], timeout_s=S)
        assert len(done.stdout.split()) < 10
        pid = str(os.getpid())
        done = await sandbox.exec(["kill", "-9", pid], timeout_s=S)
        assert done.exit_code != 0

    play(scene)


@isolated
def test_links_and_dots_lead_nowhere_else(play: Play, short_path: Path) -> None:
    (short_path / "secret").write_text("4715")

    async def scene(sandbox: Sandbox) -> None:
        target = short_path / "secret"
        await sandbox.exec(["ln", "-s", str(target), "/work/link"], timeout_s=S)
        await sandbox.exec(["ln", "-s", str(short_path), "/work/way"], timeout_s=S)
        dots = "../" * 30
        for path in ("link", "way/secret", f"{dots}{target}", f"/proc/self/root{target}"):
            with pytest.raises(SandboxFileError):
                await sandbox.read(path, 100)
        for path in ("way/new", f"{dots}{short_path}/new", f"/proc/1/root{short_path}/new"):
            with suppress(SandboxFileError):  # it may make such a directory of its own
                await sandbox.write(path, b"x")
            assert not (short_path / "new").exists()
        assert target.read_text() == "4715"

    play(scene)


@isolated
def test_there_is_no_network_but_loopback_and_no_abstract_socket(play: Play) -> None:
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as hidden:
        server.bind(("127.0.0.1", 0))
        server.listen()
        hidden.bind(f"\0rollmq-test-{os.getpid()}")
        hidden.listen()
        port = server.getsockname()[1]

        async def scene(sandbox: Sandbox) -> None:
            script = (
                f"import socket\nhidden = '\\0rollmq-test-{os.getpid()}'\n"
                f"here, far = ('127.0.0.1', {port}), ('192.0.2.1', 80)\n"
                "for kind, to in ((2, here), (2, far), (1, hidden)):\n"
                "  s = socket.socket(kind); s.settimeout(5)\n"
                "  try: s.connect(to); print('reached')\n"
                "  except OSError as e: print(type(e).__name__)\n"
            )
            done = await sandbox.exec(["python3", "-c", script], timeout_s=S)
            assert done.exit_code == 0, done.stderr
            assert b"reached" not in done.stdout
            assert len(done.stdout.splitlines()) == 3

        play(scene)


@isolated
def test_programs_have_no_privileges_and_get_none(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        done = await sandbox.exec(["cat", "/proc/self/status"], timeout_s=S)
        told = dict(line.split(b":", 1) for line in done.stdout.splitlines())
        assert int(told[b"CapEff"], 16) == int(told[b"CapBnd"], 16) == 0
        assert int(told[b"NoNewPrivs"]) == 1
        for command in ("mount -t tmpfs none /tmp", "mount -o remount,rw /usr", "chroot / true"):
            done = await sandbox.exec(["sh", "-c", command], timeout_s=S)
            assert done.exit_code != 0, command

    play(scene)


@isolated
def test_killing_everything_inside_leaves_the_sandbox_usable(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        await sandbox.exec(["sh", "-c", "kill -9 -1"], timeout_s=S)
        done = await sandbox.exec(["echo", "still here"], timeout_s=S)
        assert done.stdout == b"still here\n"

    play(scene)


@isolated
def test_orphans_are_buried(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        script = "for i in 1 2 3 4; do (setsid true &); done"
        for _ in range(16):  # more than there may be at once
            done = await sandbox.exec(["sh", "-c", script], timeout_s=S)
            assert done.exit_code == 0
        await _until(sandbox, ["sh", "-c", "ps ax -o stat= | grep -c '^Z'"], b"0\n")

    play(scene)


async def _until(sandbox: Sandbox, command: list[str], wanted: bytes) -> None:
    deadline = time.monotonic() + S
    while (done := await sandbox.exec(command, timeout_s=S)).stdout != wanted:
        assert time.monotonic() < deadline, done
