"""A node's tie to its launcher."""

import os
import subprocess
import sys
import time

from engine.process import PARENT, child_environment

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
