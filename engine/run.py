"""The main job: start a topology, stream every rollout of a task file to disk, sum it up.

A run is named in `OUT/run.json`; its name is the client_id and the prefix of every group, so that
an interrupted run goes on where it was (`--resume`) and a new one never meets the ids of an old.
A rollout is acknowledged once it is on disk, so not even a crash of the machine loses one; one that
comes again after a crash is recognised by its id.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Protocol, Self
from uuid import uuid4

import orjson
from rich.console import Console

from .client import Client
from .display import RunDisplay
from .errors import RollmqError
from .files import write_whole
from .output import FILE_NAME, RolloutFile, read_rollouts
from .records import Task
from .security import operator_name
from .summary import Section, Summary
from .supervisor import Supervisor
from .topology import Topology
from .trajectories import Rollout

STATUS_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `rollmq run` was asked to do."""

    out: Path
    group_size: int
    resume: bool
    overwrite: bool
    quiet: bool


@dataclass(frozen=True, slots=True)
class _Job:
    topology: Topology
    tasks: list[Task]
    options: RunOptions
    console: Console
    name: str
    done: set[str]
    summary: Summary

    @property
    def total(self) -> int:
        return len(self.tasks) * self.options.group_size


class Launcher(Protocol):
    """Who keeps the nodes of a topology up during a run."""

    def __enter__(self) -> Self:
        """Start them."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        """Drain and end them."""

    def watch(self) -> None:
        """Start again what has ended."""

    def wait_ready(self, deadline_s: float, /) -> None:
        """Wait until all of them have said hello."""

    @property
    def pids(self) -> Mapping[str, int]:
        """The process ids of what it has started."""

    @property
    def restarts(self) -> Mapping[str, int]:
        """How often each was started again."""

    @property
    def sandboxes(self) -> Mapping[str, str]:
        """Which provider makes the sandboxes of each host."""


class Attached:
    """The launcher of a topology that somebody else keeps up: it does nothing."""

    pids: Mapping[str, int] = MappingProxyType({})
    restarts: Mapping[str, int] = MappingProxyType({})
    sandboxes: Mapping[str, str] = MappingProxyType({})

    def __enter__(self) -> Self:
        """Start nothing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave everything as it is."""

    def watch(self) -> None:
        """Leave it to whoever started the topology."""

    def wait_ready(self, deadline_s: float) -> None:
        """Let the run's client wait for the broker."""


def run(
    topology: Topology,
    tasks: list[Task],
    options: RunOptions,
    console: Console,
    launcher: Launcher | None = None,
) -> dict[str, Any]:
    """Run every task; return the summary that was written to OUT/summary.json.

    Without a launcher the topology is started on this machine. The first Ctrl-C ends the run early,
    with the nodes drained and `interrupted` in the summary.

    Raises: RollmqError: OUT is taken, a node cannot be kept up, the broker cannot be reached;
    KeyboardInterrupt before the first rollout, or at the second Ctrl-C.
    """
    name, stale = _name(topology, options, len(tasks) * options.group_size)
    summary = Summary(sections())
    job = _Job(topology, tasks, options, console, name, _done(options, summary), summary)
    with launcher or Supervisor(topology) as supervisor:
        if supervisor.pids:
            console.print(f"starting {', '.join(supervisor.pids)} of {topology.name}")
        supervisor.wait_ready(topology.timeouts.start_s)
        for host, provider in supervisor.sandboxes.items():
            console.print(f"sandboxes on {host}: {provider}")
        if stale is not None:
            _discard(topology, stale)
        started, interrupted = time.monotonic(), False
        try:
            _stream(job, supervisor)
        except KeyboardInterrupt:
            interrupted = True
            console.print("interrupted, draining")
        finally:
            report = summary.report(time.monotonic() - started, str(options.out))
            report |= {"asked": job.total, "interrupted": interrupted}
            report["restarts"] = dict(supervisor.restarts)
            _write_json(options.out / "summary.json", report)
    return report


def sections() -> dict[str, Section]:
    """Return what packages add to a summary, by name."""
    return {point.name: point.load()() for point in entry_points(group="rollmq.summaries")}


def look_up(out: Path) -> dict[str, Any]:
    """Return the summary of the run in `out`: what it left, or what it has written so far.

    Raises: RollmqError if there is no run.
    """
    named, path = out / "run.json", out / "summary.json"
    if path.exists():
        report: dict[str, Any] = orjson.loads(path.read_bytes())
        return report
    if not named.exists():
        raise RollmqError(f"{out} holds no run: expected {named}")
    summary, run_ = Summary(sections()), orjson.loads(named.read_bytes())
    for rollout in read_rollouts(out / FILE_NAME) if (out / FILE_NAME).exists() else ():
        summary.add(rollout)
    report = summary.report(time.time() - run_["began"], str(out))
    return report | {"asked": run_["asked"], "interrupted": False, "unfinished": True}


def _stream(job: _Job, supervisor: Launcher) -> None:
    options, window = job.options, job.topology.limits.client_window
    key = operator_name(job.topology.path)
    wanted = (task for task in job.tasks if not _all_done(job, task))
    with (
        RolloutFile(options.out / FILE_NAME) as file,  # closed last: a client that closes syncs
        Client(job.topology.path, job.name, window=window, sync=file.sync, key=key) as client,
        _display(job.console, job.total, quiet=options.quiet) as display,
    ):
        status: dict[str, Any] | None = None
        look_at = 0.0
        for rollout in client.run(
            wanted,
            options.group_size,
            group_id=lambda task: group_name(job.name, task),
            idle=supervisor.watch,
        ):
            _keep(job, rollout, file)
            now = time.monotonic()
            if now >= look_at:
                look_at = now + STATUS_EVERY_S
                supervisor.watch()
                status = client.status()
            display.update(job.summary, status)


def _keep(job: _Job, rollout: Rollout, file: RolloutFile) -> None:
    """Write a rollout that is new; the client syncs the file before it acknowledges."""
    if rollout.rollout_id not in job.done:
        file.write(rollout)
        job.done.add(rollout.rollout_id)
        job.summary.add(rollout)


def group_name(run_name: str, task: Task) -> str:
    """Name the group of a task within a run."""
    return f"{run_name}/{task.task_id}"


def _all_done(job: _Job, task: Task) -> bool:
    group = group_name(job.name, task)
    return all(f"{group}-{number}" in job.done for number in range(job.options.group_size))


@contextmanager
def _display(console: Console, total: int, *, quiet: bool) -> Iterator[RunDisplay]:
    display = RunDisplay(console, total, quiet=quiet)
    try:
        yield display
    finally:
        display.close()


def _name(topology: Topology, options: RunOptions, asked: int) -> tuple[str, str | None]:
    """Return this run's name, and that of a run in the same place that is to be discarded."""
    summary = options.out / "summary.json"
    path = options.out / "run.json"
    before: str | None = orjson.loads(path.read_bytes())["name"] if path.exists() else None
    if before is not None and options.resume:
        summary.unlink(missing_ok=True)
        return before, None
    if before is not None and not options.overwrite:
        raise RollmqError(f"{options.out} holds a run: say --resume, --overwrite or another --out")
    options.out.mkdir(parents=True, exist_ok=True)
    for left in (options.out / FILE_NAME, summary):
        left.unlink(missing_ok=True)
    whose = operator_name(topology.path)  # a client_id begins with its key's name
    name = f"{whose}-run-{uuid4().hex[:10]}" if whose else f"run-{uuid4().hex[:10]}"
    _write_json(path, {"name": name, "asked": asked, "began": time.time()})
    return name, before


def _done(options: RunOptions, summary: Summary) -> set[str]:
    path = options.out / FILE_NAME
    if not path.exists():
        return set()
    _drop_torn_line(path)
    done = set()
    for rollout in read_rollouts(path):
        done.add(rollout.rollout_id)
        summary.add(rollout)
    summary.begin()
    return done


def _drop_torn_line(path: Path) -> None:
    file: IO[bytes]
    with path.open("r+b") as file:
        whole = sum(len(line) for line in file if line.endswith(b"\n"))
        file.truncate(whole)


def _discard(topology: Topology, name: str) -> None:
    """Cancel and take what is left of a run that is overwritten."""
    with Client(topology.path, name, key=operator_name(topology.path)) as client:
        client.cancel(everything=True)
        for _ in client.rollouts():
            pass


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, orjson.dumps(value, option=orjson.OPT_INDENT_2), sync=True)
