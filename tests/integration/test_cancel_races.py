"""A cancel that overtakes the work that it stops: nothing may run on until the next heartbeat."""

import time
from pathlib import Path

from engine import Client, Task

from ..topology_kit import running_topology

HEARTBEAT_S = 8.0
TOPOLOGY = f"""\
version: 1
durability: process
timeouts: {{heartbeat_s: {HEARTBEAT_S}, drain_s: 2}}
stages:
  - {{name: run, slots: 200}}
"""
SLEEPER = """\
import asyncio


async def run(context):
    await asyncio.sleep(600)
"""
ROUNDS, ROLLOUTS = 8, 200


def test_work_that_is_cancelled_on_its_way_never_begins(short_path: Path) -> None:
    with (
        running_topology(short_path, TOPOLOGY, {"sleeper": SLEEPER}) as site,
        Client(site.endpoint("front")) as client,
    ):
        for number in range(ROUNDS):
            client.submit(Task(f"t-{number}", "sleeper", {}), ROLLOUTS)
            began = time.monotonic()
            answer = client.cancel(everything=True)
            assert len(answer.receipts) == ROLLOUTS
            assert time.monotonic() - began < HEARTBEAT_S / 2, "a heartbeat had to stop the rest"
            assert {rollout.outcome for rollout in client.rollouts()} == {"cancelled"}
