"""A topology whose disk runs full for real, and empties again.

The scenario runs in a process with mounts of its own, so that no mount outlives it; run with
`python -m`, this file is that process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import Full

from .scene import REPOSITORY, Scene, running, until

pytestmark = pytest.mark.chaos

SIZE = "96m"


def a_full_disk_refuses_submits_and_keeps_what_runs(directory: Path) -> None:
    with running(directory, stages=[{"name": "run", "slots": 8}, {"name": "eval"}]) as scene:
        gate = scene.directory / "gate"
        with scene.client() as client:
            kept = client.submit(scene.task("kept", gate=str(gate)), 8)
            until(lambda: client.status()["stages"][0]["leased"] == 8, "eight rollouts to run")
            filler = occupy(scene)
            refused = until(lambda: is_refused(scene), "a submit to be refused")
            assert "disk" in refused
            gate.write_text("") if space(scene) else gate.symlink_to("/")
            until(lambda: client.status()["journal"]["full"], "the journal to say so")
            assert client.status()["counts"].get("failed", 0) == 0
            filler.unlink()
            found = {r.rollout_id: r.outcome for r in client.rollouts()}
            assert found == dict.fromkeys(kept, "completed")
            after = client.submit(scene.task("after"), 4)
            assert {r.rollout_id for r in client.rollouts()} == set(after)


def is_refused(scene: Scene) -> str:
    """Submit until it is refused; what is accepted is cancelled."""
    with scene.client("prober") as client:
        try:
            client.submit(scene.task("probe"), 1, wait=False)
        except Full as refused:
            return str(refused)
    return ""
