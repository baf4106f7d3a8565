"""rollmq as a candidate of bench.scale: one topology, a host of it for each simulated host.

Every host has an address of its own on the loopback network and its own processes for init, run and
eval; the broker and the client share the first one. All links are TCP, over CURVE if asked for.
"""

import itertools
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import machine, workload
from bench.bus import GROUP, ROOT
from bench.scale_shape import Load, Point, Times, Window
from engine import Client, Rollout, Task
from engine import load as load_topology
from engine.security import KeyStore
from engine.supervisor import Supervisor

START_S = 300.0
PORTS = range(20_000, 30_000, 4)


def run(load: Load, seconds: float, warmup_s: float, *, keys: bool = False) -> Point:
    """Measure rollmq under a load; with keys, over CURVE.

    Raises:
        WrongRolloutError: a rollout arrived that is not the one asked for.
        RollmqError: the topology could not be kept up.

    """
    with started(load, keys=keys) as path, Client(path, window=4096) as client:
        window = Window(load, seconds, warmup_s, machine.spent)
        for rollout in client.run(_tasks(load), GROUP, in_flight=load.in_flight):
            if not window.ended(_times(rollout, load)):
                break
        memory = machine.memory_bytes(machine.tree(os.getpid()))
        client.cancel(everything=True)
        for _ in client.rollouts():
            pass
    return window.point(memory)


def settings(load: Load, port: int, *, keys: bool) -> dict[str, Any]:
    """Return the topology file of a load."""
    hosts = [f"host-{number}" for number in range(1, load.hosts + 1)]
    slots = {"init": load.side_slots, "run": load.run_slots, "eval": load.side_slots}
    return {
        "version": 1,
        "name": "scale",
        "run_dir": "r",
        "log_level": "warning",
        **({"keys": "keys"} if keys else {"insecure": True}),
        "hosts": {host: {"address": f"127.0.0.{n}"} for n, host in enumerate(hosts, 1)},
        "broker": {"host": hosts[0], "port": port},
        "limits": {"client_window": 4096, "retention_s": 60},
        "timeouts": {"drain_s": 2.0},
        "stages": [
            {
                "name": name,
                "slots": count,
                "workers": dict.fromkeys(hosts, 1),
                "timeout_s": 3600,
            }
            for name, count in slots.items()
        ],
    }


@contextmanager
def started(load: Load, *, keys: bool) -> Iterator[Path]:
    """Run a load's topology for the length of the block; yield its file."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(paths)))
    with tempfile.TemporaryDirectory(prefix="rq") as folder:
        path = Path(folder) / "t.yaml"
        text = json.dumps(settings(load, free_ports(), keys=keys))
        path.write_text(text, encoding="utf-8")
        topology = load_topology(path)
        if topology.keys is not None:
            KeyStore(topology.keys).make(host.name for host in topology.hosts)
        with Supervisor(topology) as supervisor:
            supervisor.wait_ready(START_S)
            yield path


def free_ports() -> int:
    """Return the first of four ports in a row that nobody has.

    Raises:
        OSError: there are none.

    """
    for first in PORTS:
        try:
            for port in range(first, first + 4):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise OSError("no four ports in a row are free")


def _tasks(load: Load) -> Iterator[Task]:
    for number in itertools.count():
        payload = {
            "task_id": number,
            "first": number * GROUP,
            "mean_s": load.mean_s,
            "tokens": load.tokens,
        }
        yield Task(str(number), "bench.scale_kind", payload)


def _times(rollout: Rollout, load: Load) -> Times:
    trajectory, reward = rollout.trajectory, rollout.reward
    assert trajectory is not None, rollout
    assert reward is not None, rollout
    made = workload.Trajectory(trajectory.token_ids, trajectory.logprobs, trajectory.loss_mask)
    workload.check(int(rollout.task_id), made, reward, load.tokens)
    data = rollout.data
    return Times(
        data["init"]["ended"], data["run"]["began"], data["run"]["ended"], data["eval"]["began"]
    )
