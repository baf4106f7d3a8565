"""Two servers that the topology starts, of which one is killed while it samples."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import Client, Rollout, Task

from ..topology_kit import running_topology
from ..vllm_kit import OWN
from .test_exactness import topology

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROLLOUTS, GROUP_SIZE = 24, 4
TURNS, TOKENS = 3, 150
WALK = f"""\
import numpy as np

from nodes import tokens
from nodes.tasks import Output, Sampling
from nodes.transcript import Transcript


async def init(context):
    return Output()


async def run(context):
    vocabulary = tokens.load()
    transcript = Transcript()
    transcript.prompt(vocabulary.opening([("user", context.task.payload["question"])]))
    session = f"{{context.rollout_id}}.{{context.attempt}}"
    for turn in range({TURNS}):
        if turn:
            transcript.prompt(vocabulary.next_turn("user", "Go on."))
        sampling = Sampling(max_tokens={TOKENS}, temperature=2.0)
        generation = await context.model.generate(session, transcript.token_ids(), sampling)
        transcript.completion(generation, 0.0)
    await context.model.release(session)
    return Output(trajectory=transcript.trajectory())


async def eval(context):
    return Output(reward=1.0)
"""


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_rollout_completes_though_a_server_is_killed(short_path: Path) -> None:
    tasks = [
        Task(f"t{n}", "kinds.walk", {"question": f"Start with {n}."})
        for n in range(ROLLOUTS // GROUP_SIZE)
    ]
    with running_topology(short_path, topology(OWN, count=2), {"walk": WALK}, ready_s=240) as site:
        node = site.supervisor.pids["vllm-0"]
        (guard,) = children(node)
        (server,) = children(guard)
        family = [guard, server, *children(server)]
        with Client(site.topology.path, "watcher") as client, ThreadPoolExecutor() as pool:
            taken = pool.submit(run, site.topology.path, tasks)
            site.until(lambda: working(client, "vllm-0") >= 4, 60)
            os.kill(server, signal.SIGKILL)
            rollouts = taken.result(300)
            site.until(lambda: not [pid for pid in family if alive(pid)], 60)
            assert site.supervisor.pids["vllm-0"] == node
            site.until(lambda: lives(client, "vllm-0") == 2, 240)
    assert len({rollout.rollout_id for rollout in rollouts}) == len(rollouts) == ROLLOUTS
    assert [rollout.outcome for rollout in rollouts] == ["completed"] * ROLLOUTS
    assert [rollout.reward for rollout in rollouts] == [1.0] * ROLLOUTS
    assert not [failure for rollout in rollouts for failure in rollout.failures]
    assert "server lost" in site.log("vllm-0")


def run(topology: Path, tasks: list[Task]) -> list[Rollout]:
    with Client(topology, "trainer") as client:
        return list(client.run(tasks, GROUP_SIZE))


def working(client: Client, node: str) -> float:
    return figure(client, node, "open")


def lives(client: Client, node: str) -> float:
    return figure(client, node, "lives")


def figure(client: Client, node: str, name: str) -> float:
    nodes = {each["node"]: each["figures"] for each in client.status()["nodes"]}
    return float(nodes[node].get(name, 0.0)) if node in nodes else 0.0
