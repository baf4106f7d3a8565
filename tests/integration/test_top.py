"""`rollmq top` in a terminal of its own, over a broker that goes and comes back."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ptyprocess import PtyProcessUnicode

from engine import Client, Task
from engine.process import child_environment

from ..topology_kit import ECHO, QUICK, Site, running_topology

DEADLINE_S = READY_S = 240.0
TASK = Task("t", "kinds.echo", {"n": 1})


@pytest.fixture
def site(short_path: Path) -> Iterator[Site]:
    with running_topology(short_path, QUICK, {"echo": ECHO}, READY_S) as running:
        yield running


def command(site: Site, *options: str) -> list[str]:
    return [sys.executable, "-m", "engine.cli", "top", str(site.topology.path), *options]


def called(site: Site, *options: str) -> "subprocess.CompletedProcess[str]":
    environment = {**child_environment(), "COLUMNS": "100"}
    return subprocess.run(
        command(site, *options),
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_one_frame_shows_stages_hosts_and_workers_within_100_by_40(site: Site) -> None:
    with Client(site.topology.path) as client:
        client.submit(TASK, 4)
        assert len(list(client.rollouts())) == 4
    ended = called(site, "--once")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert "completed 4" in ended.stdout
    for word in ("init", "run", "eval", "local", "init-0", "limits.rollouts", "slowest waits"):
        assert word in ended.stdout


def test_a_json_line_has_the_status_and_its_rates(site: Site) -> None:
    told = json.loads(called(site, "--json").stdout)
    assert set(told["rates"]["stages"]) == {"init", "run", "eval"}
    assert told["rates"]["seconds"] >= 1.0
    assert [stage["stage"] for stage in told["stages"]] == ["init", "run", "eval"]


def test_a_live_view_says_that_the_broker_is_away_and_finds_it_again(site: Site) -> None:
    live = PtyProcessUnicode.spawn(
        command(site, "--interval", "0.2"), dimensions=(40, 100), env=os.environ
    )
    broker = site.supervisor.pids["broker"]
    try:
        read_until(live, r"broker-[0-9a-f]+ +serving")
        os.kill(broker, signal.SIGSTOP)
        read_until(live, r"has not answered for \d+ s")
        os.kill(broker, signal.SIGKILL)
        site.until(lambda: site.supervisor.watch() or site.supervisor.pids["broker"] != broker)
        read_until(live, r"broker-[0-9a-f]+ +(recovering|serving)", site.supervisor.watch)
        live.sendintr()
        read_until(live, r"\?1049l")  # the terminal is as it was
        assert live.wait() == 0
    finally:
        if live.isalive():
            live.kill(signal.SIGKILL)
        live.close()


def read_until(live: PtyProcessUnicode, pattern: str, meanwhile: Callable[[], None] = int) -> None:
    """Read what a terminal shows until a pattern comes, which what was read before may not hold."""
    deadline, shown = time.monotonic() + DEADLINE_S, ""
    while not re.search(pattern, shown):
        assert time.monotonic() < deadline, f"no {pattern!r} in {shown[-2000:]!r}"
        meanwhile()
        try:
            shown += live.read(4096)
        except EOFError:
            raise AssertionError(f"ended without {pattern!r}: {shown[-2000:]!r}") from None
