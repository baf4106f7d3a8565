"""What providers that isolate keep out, and in."""

import os
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from nodes.sandboxes.contract import Sandbox, SandboxFileError

from ..sandbox_kit import SMALL, Play, S, isolated, until


def is_there(path: str) -> bool:
    return Path(path).exists()


@isolated
def test_nobody_inside_holds_on_to_what_the_sandbox_hangs_by(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        for way in ("<", ">", "<>"):
            done = await sandbox.exec(["sh", "-c", f": 3{way} /proc/1/fd/0"], timeout_s=S)
            assert done.exit_code != 0, way

    play(scene)


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
def test_with_network_a_sandbox_has_the_hosts_with_its_loopback(play: Play) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        script = (
            f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]} && echo from inside >&3"
            " && echo reached"
        )

        async def scene(sandbox: Sandbox) -> None:
            done = await sandbox.exec(["bash", "-c", script], timeout_s=S)
            assert done.stdout == b"reached\n", done.stderr
            server.settimeout(S)
            with server.accept()[0] as caller:
                assert caller.recv(100) == b"from inside\n"

        play(scene, replace(SMALL, network=True))


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
def test_nobody_inside_gets_a_namespace_in_which_it_could_mount(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        for command in (
            "unshare -U true",
            "unshare -Urm sh -c 'mount -t tmpfs none /tmp && touch /tmp/mounted'",
            "unshare -Urpf true",
        ):
            done = await sandbox.exec(["sh", "-c", command], timeout_s=S)
            assert done.exit_code != 0, command
            assert b"unshare failed" in done.stderr
        assert "mounted" not in [entry.name for entry in await sandbox.list("/tmp")]

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
        await until(sandbox, ["sh", "-c", "ps ax -o stat= | grep -c '^Z'"], b"0\n")

    play(scene)
