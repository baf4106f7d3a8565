"""The guard of a server: nothing that the server started outlives it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.process import child_environment

DEADLINE_S = 30.0
GUARD = [sys.executable, "-m", "nodes.backends.vllm.guard"]
FAMILY = 'sleep 1000 & echo $$ $! > "$1.tmp" && mv "$1.tmp" "$1"; sleep 1000'
STUBBORN = f'trap "" TERM; {FAMILY}'


def guarded(script: str, pids: Path) -> subprocess.Popen[bytes]:
    command = [*GUARD, "sh", "-c", script, "sh", str(pids)]
    return subprocess.Popen(command, env=child_environment())


def read_pids(path: Path) -> list[int]:
    until(path.exists, "the family wrote its process ids")
    return [int(pid) for pid in path.read_text().split()]


def until(holds: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.02)


def read_or_nothing(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "pids"
    for pid in (tmp_path / "pids").read_text().split():
        assert is_gone(int(pid))


@pytest.mark.parametrize("script", [FAMILY, STUBBORN], ids=["plain", "deaf to SIGTERM"])
def test_asked_to_stop_it_ends_the_whole_family(pids: Path, script: str) -> None:
    guard = guarded(script, pids)
    family = read_pids(pids)
    guard.terminate()
    guard.wait(DEADLINE_S)
    until(lambda: all(map(is_gone, family)), "the family is gone")


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.2, 0.3])
def test_asked_while_it_starts_it_leaves_nothing_behind(tmp_path: Path, after_s: float) -> None:
    """Whenever the signal comes: before the command runs, in the middle of its start, or after."""
    pids = tmp_path / "pids"
    guard = guarded(FAMILY, pids)
    time.sleep(after_s)
    guard.terminate()
    guard.wait(DEADLINE_S)
    running = [*Path("/proc").glob("[0-9]*/cmdline")]
    assert not [each for each in running if str(pids).encode() in read_or_nothing(each)]


def test_a_killed_server_leaves_nothing_behind(pids: Path) -> None:
    guard = guarded(FAMILY, pids)
    family = read_pids(pids)
    os.kill(family[0], signal.SIGKILL)
    assert guard.wait(DEADLINE_S) == 128 + signal.SIGKILL
    until(lambda: all(map(is_gone, family)), "the family is gone")


def test_the_family_goes_with_whoever_started_the_guard(pids: Path) -> None:
    started = (
        "import subprocess, sys, time; from engine.process import child_environment; "
        "subprocess.Popen(sys.argv[1:], env=child_environment()); time.sleep(1000)"
    )
    command = [*GUARD, "sh", "-c", FAMILY, "sh", str(pids)]
    parent = subprocess.Popen([sys.executable, "-c", started, *command])
    family = read_pids(pids)
    parent.kill()
    parent.wait(DEADLINE_S)
    until(lambda: all(map(is_gone, family)), "the family is gone")
