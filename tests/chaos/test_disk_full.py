"""A topology whose disk runs full for real, and empties again.

The scenario runs in a process with mounts of its own, so that no mount outlives it: this file,
run with `python -m`.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq

from engine import Client, Full, load

from .scene import REPOSITORY, Scene, running, until

pytestmark = pytest.mark.chaos

SMALL = "size=40m"  # the journal's ballast, its database, and a segment cut short
SHORT = {"heartbeat_s": 0.3, "lease_s": 1.0}
STAGES = [{"name": "run", "slots": 8}, {"name": "eval"}]


def test_a_full_disk_refuses_submits_and_loses_nothing(tmp_path: Path) -> None:
    own_mounts = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "-r", "--mount"]
    done = subprocess.run(
        [*own_mounts, sys.executable, "-m", "tests.chaos.test_disk_full", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def scenario(directory: Path, disk: Path) -> None:
    with running(directory, stages=STAGES, run_dir=str(disk / "run"), timeouts=SHORT) as scene:
        broker, gate = scene.node("broker"), directory / "gate"
        with scene.client() as client:
            kept = client.submit(scene.task("kept", gate=str(gate)), 8)
            until(lambda: client.status()["stages"][0]["leased"] == 8, "eight rollouts to run")
            filler = occupy(disk / "filler")
            refused = until(lambda: probe(scene), "a submit to be refused")
            assert "disk is full" in refused
            make_it_log(scene)
            gate.touch()
            let_leases_pass(client)
            filler.unlink()
            found = {rollout.rollout_id: rollout.failures for rollout in client.rollouts()}
            assert found == dict.fromkeys(kept, ())
            client.submit(scene.task("after"), 4)
            assert [rollout.outcome for rollout in client.rollouts()] == ["completed"] * 4
        assert scene.node("broker") == broker, "the broker went on"


def let_leases_pass(client: Client) -> None:
    """Wait until results wait for the disk, and for a few leases more."""
    until(lambda: client.status()["stages"][1]["leased"] == 8, "the last stage to be due")
    end = time.monotonic() + 3.0
    until(lambda: time.monotonic() > end, "leases to pass")
    assert client.status()["counts"].get("expired", 0) == 0


def occupy(filler: Path) -> Path:
    """Fill the disk to the last page."""
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return filler
    raise AssertionError("the disk has no end")


def probe(scene: Scene) -> str:
    """Submit once; return why it was refused for want of disk, if it was."""
    with scene.client("prober") as client:
        try:
            client.submit(scene.task("probe", pad="x" * 50_000), wait=False, timeout_s=1.0)
        except Full as refused:
            return str(refused) if "disk" in str(refused) else ""
    return ""


def make_it_log(scene: Scene) -> None:
    """Send what is refused, and logged, to the broker."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.connect(load(scene.topology).endpoint("front"))
        for _ in range(200):
            peer.send_multipart([b"rollmq/1 nonsense", b"{}"])
        for _ in range(200):
            assert peer.poll(5000), "an answer"
            peer.recv_multipart()


if __name__ == "__main__":
    disk = Path(sys.argv[1]) / "d"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", SMALL, "none", disk], check=True)
    scenario(Path(sys.argv[1]), disk)
