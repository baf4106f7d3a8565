"""A broker's memory, while trainer and stages are slower than what comes in."""

from pathlib import Path

import pytest

from . import oracle
from .conftest import Start
from .scene import Scene, until

pytestmark = pytest.mark.chaos

MIB = 1024 * 1024
TOKENS = 100_000  # 900 KB a trajectory
ROLLOUTS = 160
MEMORY = 16 * MIB
SLACK = 48 * MIB  # sockets' own queues, the journal's cache, and what the allocator keeps
WINDOW = 8


@pytest.mark.parametrize(
    ("payload", "options"),
    [({}, {"ack_delay_s": 0.03}), ({"eval_s": 0.05}, {})],
    ids=["a slow trainer", "a slow stage"],
)
def test_the_brokers_memory_is_bounded(
    start: Start, payload: dict[str, float], options: dict[str, float]
) -> None:
    evaluation = {"name": "eval", "slots": 2, "ready": ROLLOUTS, "memory_bytes": "4MiB"}
    scene = start(
        stages=[{"name": "run", "slots": 16, "memory_bytes": "16MiB"}, evaluation],
        limits={"memory_bytes": MEMORY, "message_bytes": 2 * MIB},
    )
    before = resident_bytes(scene, "VmRSS")
    trainer = scene.start_trainer(
        ROLLOUTS, payload={"tokens": TOKENS, **payload}, window=WINDOW, **options
    )
    read_back = until(lambda: bodies_read_back(scene), "a body to come from the disk")
    scene.finish(trainer)
    assert read_back > 0
    verdict = oracle.judge(scene.logs)
    assert not verdict.problems, verdict
    assert verdict.counts["completed"] == ROLLOUTS, verdict
    assert resident_bytes(scene, "VmHWM") - before < MEMORY + WINDOW * MIB + SLACK
    assert scene.status()["process"]["body_bytes"] == 0


def bodies_read_back(scene: Scene) -> int:
    report = scene.status()
    assert report["process"]["body_bytes"] <= MEMORY + 8 * MIB, "what is not on disk yet"
    return report["process"]["bodies_read_back"]


def resident_bytes(scene: Scene, figure: str) -> int:
    """Return a figure of the broker's /proc/PID/status in bytes."""
    lines = Path(f"/proc/{scene.node('broker')}/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith(f"{figure}:"))
    return int(found.split()[1]) * 1024
