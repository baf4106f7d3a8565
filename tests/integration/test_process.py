"""A process of a topology: its start, its end, and a node's tie to its launcher."""

import os
import subprocess
import sys
import time
from pathlib import Path

from engine.process import PARENT, child_environment, ended_by, last_lines, spawn

DEADLINE_S = 20.0
NODE = """
import sys, time
from engine.process import die_with_parent
die_with_parent()
print("tied", flush=True)
time.sleep(600)
"""
LAUNCHER = f"""
import subprocess, sys, time
from engine.process import child_environment
child = subprocess.Popen([sys.executable, "-c", {NODE!r}], stdout=subprocess.PIPE,
                         env=child_environment())
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def is_running(process_id: int) -> bool:
    try:
        with open(f"/proc/{process_id}/stat", encoding="ascii") as file:  # noqa: PTH123 - procfs
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_node_ends_with_its_launcher_even_when_that_is_killed() -> None:
    command = [sys.executable, "-c", LAUNCHER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        node = int(launcher.stdout.readline())
        assert is_running(node)
        launcher.kill()
    give_up_at = time.monotonic() + DEADLINE_S
    while is_running(node):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_a_node_whose_launcher_was_gone_before_it_asked_exits_at_once() -> None:
    environment = {**child_environment(), PARENT: "1"}
    ended = subprocess.run(
        [sys.executable, "-c", NODE],
        env=environment,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 1
    assert b"the launcher, process 1, is gone" in ended.stderr


def test_a_node_started_by_hand_belongs_to_its_shell() -> None:
    environment = {name: value for name, value in os.environ.items() if name != PARENT}
    command = [sys.executable, "-c", "from engine.process import *; die_with_parent()"]
    assert subprocess.call(command, env=environment, timeout=DEADLINE_S) == 0


def test_what_a_process_says_is_appended_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "node.log"
    for word in ("first", "second"):
        said = f"import sys, os; print({word!r}, os.environ[{PARENT!r}], file=sys.stderr)"
        process = spawn([sys.executable, "-c", said], log)
        assert ended_by(process, time.monotonic() + DEADLINE_S)
    assert last_lines(log, 5) == [f"first {os.getpid()}", f"second {os.getpid()}"]
    assert last_lines(log, 1) == [f"second {os.getpid()}"]


def test_a_process_that_does_not_end_in_time_is_killed_with_its_group(tmp_path: Path) -> None:
    family = "sleep 1000 & echo $!; exec sleep 1000"
    process = spawn(["/bin/sh", "-c", family], tmp_path / "log")
    give_up_at = time.monotonic() + DEADLINE_S
    while not (said := last_lines(tmp_path / "log", 1)):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    assert not ended_by(process, time.monotonic())
    while is_running(int(said[0])):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
