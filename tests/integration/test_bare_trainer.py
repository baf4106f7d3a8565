"""examples/bare_trainer.py against real processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..topology_kit import ECHO, QUICK, Site, running_topology

EXAMPLE = Path(__file__).parents[2] / "examples" / "bare_trainer.py"
ENDS_S = 90.0
MIXED = """\
import asyncio
from pathlib import Path

from engine.errors import BoundaryError
from nodes.tasks import Output


async def init(context):
    return Output()


async def run(context):
    gate = context.task.payload["gate"]
    Path(f"{gate}.begun").touch()
    while not Path(gate).exists():
        await asyncio.sleep(0.02)
    if context.rollout_id.endswith("-3"):
        raise BoundaryError("sandbox", "it is gone", retry=False)
    return Output()


async def eval(context):
    return Output(reward=0.25)
"""
SAID = "0.795 mean reward of 11 rollouts"  # 8 of 1.0 and 3 of 0.25; the twelfth was lost


@contextmanager
def bare_trainer(site: Site, gate: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the example on three groups, one of which waits for the gate and loses a member."""
    rows = [
        {"task_id": f"t {at}", "kind": f"kinds.{kind}", "payload": {"gate": str(gate), "a": "ü"}}
        for at, kind in enumerate(("echo", "mixed", "echo"))
    ]
    file = gate.with_name("tasks.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, str(EXAMPLE), str(site.topology.run_dir), str(file)]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield trainer
    finally:
        trainer.kill()
        trainer.communicate()


def last_word(site: Site, trainer: subprocess.Popen[str]) -> str:
    site.until(lambda: trainer.poll() is not None, ENDS_S)
    assert trainer.stdout is not None
    said = trainer.stdout.read()
    assert trainer.returncode == 0, said
    return said.splitlines()[-1]


def test_it_receives_every_rollout_and_leaves_out_what_was_lost(short_path: Path) -> None:
    gate = short_path / "gate"
    gate.touch()
    with (
        running_topology(short_path, QUICK, {"echo": ECHO, "mixed": MIXED}) as site,
        bare_trainer(site, gate) as trainer,
    ):
        assert last_word(site, trainer) == SAID


def test_it_lives_through_a_broker_that_is_killed(short_path: Path) -> None:
    gate = short_path / "gate"
    with (
        running_topology(short_path, QUICK, {"echo": ECHO, "mixed": MIXED}) as site,
        bare_trainer(site, gate) as trainer,
    ):
        site.until(Path(f"{gate}.begun").exists, ENDS_S)
        broker = site.supervisor.pids["broker"]
        os.kill(broker, signal.SIGKILL)
        site.until(lambda: site.supervisor.pids.get("broker", broker) != broker, ENDS_S)
        gate.touch()
        assert last_word(site, trainer) == SAID
