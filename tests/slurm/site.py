"""A directory from which jobs are submitted: a topology, task kinds, tasks, and what comes of them.

The kind `kinds.gated` runs until the file exists that its payload names, and at once without one.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine import Client, load
from engine.security import KeyStore

from .cluster import Cluster, free_ports

ROLLMQ = str(Path(sys.executable).with_name("rollmq"))
JOB_S = 300.0

GATED = '''\
"""Runs until the file that its payload names exists; ends at once if it names none."""

import asyncio
from pathlib import Path

from nodes.tasks import Output


def init(context):
    return Output()


async def run(context):
    gate = context.task.payload.get("gate")
    while gate and not Path(gate).exists():
        await asyncio.sleep(0.1)
    return Output(data={"host": context.task.task_id})


def eval(context):
    return Output(reward=0.5)
'''

STAGES = """\
stages:
  - {{name: init, slots: 64, workers: {workers}}}
  - {{name: run, slots: 64, workers: {workers}}}
  - {{name: eval, slots: 64, workers: {workers}}}
"""

TIMES = "{heartbeat_s: 0.5, drain_s: 2, cancel_grace_s: 0.5, retry_delay_s: 0.2, start_s: 120}"


class Site:
    """Where jobs are submitted from, and what they leave."""

    def __init__(self, cluster: Cluster, path: Path) -> None:
        self.cluster = cluster
        self.path = path
        self.gate = path / "gate"
        self.out = path / "out"
        (path / "kinds").mkdir()
        (path / "kinds" / "gated.py").write_text(GATED)
        (path / "local").mkdir()

    def topology(self, hosts: str, workers: str) -> None:
        """Write a topology: hosts as YAML, and where each stage's workers are."""
        head = f"version: 1\nname: job\nkeys: keys\ndurability: process\nhosts: {hosts}\n"
        head += f"broker: {{port: {four_ports()}}}\ntimeouts: {TIMES}\n"
        file = self.path / "topology.yaml"
        file.write_text(head + STAGES.format(workers=workers))
        store = KeyStore(self.path / "keys")
        store.make([host.name for host in load(file).hosts])
        store.add("trainer", "trainer")

    def tasks(self, open_: int, gated: int) -> None:
        """Write tasks: some that end at once, and some that wait for the gate."""
        payloads: list[dict[str, str]] = [{}] * open_ + [{"gate": str(self.gate)}] * gated
        rows = (
            {"task_id": f"t-{number}", "kind": "kinds.gated", "payload": payload}
            for number, payload in enumerate(payloads)
        )
        (self.path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def rollmq(self, *words: str) -> str:
        return self.call(ROLLMQ, *words)

    def call(self, *words: str) -> str:
        """Return what a command says. Raises: AssertionError with its complaint if it fails."""
        done = subprocess.run(
            words,
            cwd=self.path,
            env={**self.cluster.environment, "PYTHONPATH": str(self.path), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=JOB_S,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def submit(self, *words: str) -> str:
        """Submit the topology and return the job's id."""
        local = ("--local-dir", str(self.path / "local"))
        said = self.rollmq("submit", "slurm", "topology.yaml", *local, *words, "--json")
        job: str = json.loads(said)["job_id"]
        return job

    def submit_run(self, *words: str, group_size: int = 1) -> str:
        given = ("--tasks", "tasks.jsonl", "--out", "out", "--group-size", str(group_size))
        return self.submit(*given, *words)

    def said(self, job: str) -> str:
        """Return what a job has said so far."""
        path = self.path / "run" / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def address(self, job: str) -> Path:
        return self.path / "run" / f"slurm-{job}" / "address.json"

    def trainer(self, job: str) -> Client:
        """Connect to a job as its address book says."""
        return Client(json.loads(self.address(job).read_text())["topology"], "trainer-0")

    def log(self, job: str, host: str) -> str:
        path = self.path / "run" / f"slurm-{job}" / f"{host}.log"
        return path.read_text() if path.exists() else ""

    def until_said(self, job: str, text: str, times: int = 1) -> None:
        self.cluster.until(
            lambda: self.said(job).count(text) >= times,
            f"job {job} says {text!r} {times} times; it said:\n",
            JOB_S,
            lambda: self.everything(job),
        )

    def until_written(self, count: int, job: str) -> None:
        self.cluster.until(
            lambda: len(self.written) >= count,
            f"{count} rollouts are written",
            JOB_S,
            lambda: self.everything(job),
        )

    def until_begun_again(self, job: str) -> None:
        """Wait until a job runs no more: what is left of it has asked for that."""
        self.cluster.until(
            lambda: self.cluster.job_state(job) != "RUNNING",
            f"job {job} is begun again",
            JOB_S,
            lambda: self.everything(job),
        )

    def until_over(self, job: str) -> str:
        """Wait until a job has ended; return its last state."""
        ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        self.cluster.until(
            lambda: self.cluster.job_state(job) in ends,
            f"job {job} has ended",
            JOB_S,
            lambda: self.everything(job),
        )
        return self.cluster.job_state(job)

    def everything(self, job: str) -> str:
        """Return all that a job has said, for a failure's message."""
        logs = sorted((self.path / "run" / f"slurm-{job}").glob("*.log"))
        told = "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in logs)
        return f"--- the job\n{self.said(job)[-3000:]}\n{told}"

    @property
    def written(self) -> list[dict[str, Any]]:
        """The whole lines of trajectories.jsonl."""
        file = self.out / "trajectories.jsonl"
        text = file.read_bytes() if file.exists() else b""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1:] == b"\n"]

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        return found

    def expect_each_once(self, tasks: int, group_size: int = 1) -> None:
        """Check that every rollout of the task file is written once, and completed."""
        run = json.loads((self.out / "run.json").read_text())["name"]
        lines = (self.path / "tasks.jsonl").read_text().splitlines()
        names = [json.loads(line)["task_id"] for line in lines]
        assert len(names) == tasks
        wanted = sorted(f"{run}/{name}-{n}" for name in names for n in range(group_size))
        assert sorted(row["rollout_id"] for row in self.written) == wanted
        assert {row["outcome"] for row in self.written} == {"completed"}

    def left_on_disks(self) -> list[str]:
        """Return what jobs have left in the directory that stands for the nodes' disks."""
        return sorted(found.name for found in (self.path / "local").iterdir())


def four_ports() -> int:
    """Return the first of six ports in a row that seem free: the broker's and the router's."""
    return next(port for port in free_ports(20) if port < 65_000)
