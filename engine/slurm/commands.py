"""`rollmq submit slurm` and `rollmq up --launcher slurm`.

Job: turn their arguments into a batch script, or into a topology that runs on an allocation.
Does not know: how steps are kept up, or how a run streams.
Invariants: the script runs `rollmq up --launcher slurm` with the same arguments, and nothing else.
SIGTERM ends a run as Ctrl-C does; SIGUSR1 drains it and asks Slurm to begin it again.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from math import ceil
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
from rich.console import Console

from ..display import print_summary
from ..errors import NodeFailed
from ..output import read_tasks
from ..run import RunOptions, run
from ..sockets import private_directory
from ..topology import Topology, load
from .allocation import ANSWER_S, Allocation, ask, expect_program
from .host import drain_s
from .launcher import KEEP_S, Requeue, SlurmLauncher
from .script import batch_script, job_options

WATCH_S = 0.1
MOST_GRACE_S = 65_535
PASSED = ("partition", "account", "time", "gpus-per-node")


def add_slurm_options(parser: argparse.ArgumentParser) -> None:
    """Add what `rollmq up --launcher slurm` and `rollmq submit slurm` have in common."""
    group = parser.add_argument_group("Slurm")
    group.add_argument("--tasks", type=Path, help="run the tasks of this file, and end")
    group.add_argument("--group-size", type=int, default=1, help="rollouts of each task")
    group.add_argument("--out", type=Path, help="directory for what the run leaves")
    group.add_argument(
        "--local-dir",
        type=Path,
        help="a directory on a disk of each node, for the journal; default: $SLURM_TMPDIR, "
        "$TMPDIR or /tmp",
    )


def add_submit(commands: Any) -> None:
    """Add `submit` to the subparsers of `rollmq`."""
    text = "submit a topology as a job of a cluster"
    submit = commands.add_parser("submit", help=text, description=text)
    clusters = submit.add_subparsers(required=True, metavar="CLUSTER")
    slurm = clusters.add_parser(
        "slurm",
        help="Slurm",
        description="write the batch script of a topology and submit it",
        epilog="example: rollmq submit slurm topology.yaml --tasks tasks.jsonl --group-size 8 "
        "--out out --partition gpu --time 4:00:00",
    )
    slurm.set_defaults(command=_submit)
    slurm.add_argument(
        "topology", type=Path, help="the topology file, on a disk that all nodes see"
    )
    add_slurm_options(slurm)
    slurm.add_argument("--nodes", type=int, help="default: one for each host; more are spare")
    for name in PASSED:
        slurm.add_argument(f"--{name}", help="as sbatch has it")
    slurm.add_argument(
        "--sbatch-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other option of sbatch, such as exclusive or qos=high; repeat it",
    )
    slurm.add_argument(
        "--requeue-at-limit",
        action="store_true",
        help="at the time limit drain and begin again, instead of draining and ending",
    )
    slurm.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    slurm.add_argument("--json", action="store_true", help="as one JSON line")


def script_of(topology: Topology, options: argparse.Namespace) -> str:
    """Return the batch script that the arguments of `submit` ask for. Raises: NodeFailed."""
    grace_s = min(MOST_GRACE_S, ceil(2 * (drain_s(topology) + KEEP_S)))
    output = topology.run_dir / "slurm-%j.out"
    number = "USR1" if options.requeue_at_limit else "TERM"
    asked = job_options(
        topology.name, options.nodes or len(topology.hosts), output, grace_s, number
    )
    given = {name: getattr(options, name.replace("-", "_")) for name in PASSED}
    asked |= {name: value for name, value in given.items() if value is not None}
    for each in options.sbatch_option:
        name, _, value = each.partition("=")
        asked[name] = value
    command = [sys.executable, "-m", "engine.cli", "up", str(topology.path)]
    command += ["--launcher", "slurm", *_passed_on(options)]
    return batch_script(asked, command)


def up_on_slurm(options: argparse.Namespace, console: Console) -> int:
    """Run a topology on the allocation of this process; return the exit status.

    Raises: RollmqError; KeyboardInterrupt at a second Ctrl-C.
    """
    _expect_run(options)
    if options.host:
        raise NodeFailed("--host and --launcher slurm exclude each other: Slurm has every host")
    topology = load(options.topology)
    allocation = Allocation.of_environment(os.environ)
    launcher = SlurmLauncher(topology, allocation, _local(options), console.print)
    stops = _Stops(launcher)
    try:
        status = _run(launcher, options, console) if options.tasks else _stay(launcher, console)
    except Requeue as lost:
        console.print(f"{lost}; asking Slurm to begin the job again")
        ask("scontrol", "requeue", allocation.job_id)
        return 1
    except KeyboardInterrupt:
        status = 130
    if stops.number == signal.SIGUSR1 and status != 0:
        console.print("drained; asking Slurm to begin the job again")
        ask("scontrol", "requeue", allocation.job_id)
    return status


class _Stops:
    """Turns the first signal that asks for an end into KeyboardInterrupt; a drain goes on."""

    def __init__(self, launcher: SlurmLauncher) -> None:
        self.number = 0
        self._launcher = launcher
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._take)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if not self.number:
            self.number = number
            if not self._launcher.is_stopping:
                raise KeyboardInterrupt


def expect_none(options: argparse.Namespace) -> None:
    """Raise NodeFailed if `rollmq up` without Slurm was given what only Slurm's launcher reads."""
    if options.tasks or options.out or options.local_dir:
        raise NodeFailed("--tasks, --out and --local-dir need --launcher slurm; see `rollmq run`")


def _submit(options: argparse.Namespace, console: Console) -> int:
    _expect_run(options)
    topology = load(options.topology)
    if options.tasks:
        read_tasks(options.tasks)
    script = script_of(topology, options)
    if options.dry_run:
        sys.stdout.write(script)
        return 0
    expect_program("sbatch")
    private_directory(topology.run_dir)
    job_id = _sbatch(script)
    directory = topology.run_dir / f"slurm-{job_id}"
    if options.json:
        found = {"job_id": job_id, "directory": str(directory), "script": script}
        sys.stdout.write(orjson.dumps(found).decode() + "\n")
        return 0
    console.print(f"job {job_id}; it says what it does in {topology.run_dir}/slurm-{job_id}.out")
    console.print(f"once it runs, {directory}/address.json says where to connect")
    console.print(f"drain and end it: scancel --batch --signal=TERM {job_id}")
    return 0


def _sbatch(script: str) -> str:
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"],  # noqa: S607 - a cluster's own, wherever it is installed
            input=script,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NodeFailed(f"sbatch did not answer within {ANSWER_S:g} s") from None
    if done.returncode != 0:
        raise NodeFailed(f"sbatch: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]


def _run(launcher: SlurmLauncher, options: argparse.Namespace, console: Console) -> int:
    tasks = read_tasks(options.tasks)
    asked = RunOptions(options.out, options.group_size, resume=True, overwrite=False, quiet=True)
    report = run(launcher.topology, tasks, asked, console, launcher)
    print_summary(console, report)
    if report["interrupted"]:
        return 130
    return 1 if report["outcomes"].get("failed") else 0


def _stay(launcher: SlurmLauncher, console: Console) -> int:
    with launcher:
        launcher.wait_ready(launcher.topology.timeouts.start_s)
        console.print(f"ready: connect with {launcher.topology.path}")
        while True:
            launcher.watch()
            time.sleep(WATCH_S)


def _passed_on(options: argparse.Namespace) -> list[str]:
    words: list[str] = []
    if options.tasks:
        words += ["--tasks", str(options.tasks.absolute())]
        words += ["--group-size", str(options.group_size), "--out", str(options.out.absolute())]
    if options.local_dir:
        words += ["--local-dir", str(options.local_dir.absolute())]
    return words


def _expect_run(options: argparse.Namespace) -> None:
    if (options.tasks is None) != (options.out is None):
        raise NodeFailed("--tasks and --out belong together")
    if options.group_size < 1:
        raise NodeFailed("--group-size: expected at least 1")


def _local(options: argparse.Namespace) -> Path:
    named = (os.environ.get(name) for name in ("SLURM_TMPDIR", "TMPDIR"))
    return Path(options.local_dir or next(filter(None, named), "/tmp")).absolute()  # noqa: S108
