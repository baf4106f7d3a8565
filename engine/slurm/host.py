"""What runs in a step of Slurm: the launcher of one host, and the journal if the broker is there.

    python -m engine.slurm.host --topology FILE --host NAME --shared DIR   < pipe

Job: bring the journal, start `rollmq up FILE --host NAME`, end it when standard input ends, keep
the journal and the logs; where the job's launcher is gone, have Slurm begin the job again.
Does not know: the allocation, or what the host's processes do.
Invariants: standard input is a pipe from the job's launcher, which `srun` carries here: its end
asks for a drain, as SIGTERM does. Beats come through it. A job that is told to outlive its nodes
(`--no-kill`) outlives its batch script, too, if that was on a lost node: silence is how one knows.
"""

import argparse
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from ..errors import NodeFailed, RollmqError
from ..logs import configure, get_logger
from ..topology import Topology, load
from .allocation import ask
from .journals import Places, keep, take

log = get_logger()
LOOK_S = 0.2
DRAINS = 3  # one after the other
BEATS = 30  # heartbeats of the topology, of silence, after which the launcher counts as gone
LEAST_SILENCE_S = 15.0
INSIST_S, INSIST_EVERY_S = 3600.0, 10.0  # a controller may be away for a while
Ending = Literal["ended", "asked", "alone"]


def main(arguments: list[str] | None = None) -> int:
    """Run one host until it is asked to end; return the exit status of its launcher."""
    parser = argparse.ArgumentParser(prog="python -m engine.slurm.host", description=__doc__)
    parser.add_argument("--topology", required=True, type=Path)
    parser.add_argument("--host", required=True)
    parser.add_argument("--shared", required=True, type=Path, help="the job's directory")
    options = parser.parse_args(arguments)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    configure(f"host {options.host}")
    try:
        return _run(load(options.topology), options.host, options.shared, stopping)
    except (RollmqError, OSError) as wrong:
        log.critical("host stopped", host=options.host, error=str(wrong))
        return 1


def _run(topology: Topology, host: str, shared: Path, stopping: list[int]) -> int:
    node = os.environ.get("SLURMD_NODENAME", host)
    places = Places(topology.run_dir, shared)
    has_journal = host == topology.broker.host and topology.durability != "none"
    if has_journal:
        found = take(places, node)
        log.info("journal", origin=found, node=node)
        if found == "lost":
            log.error("the journal is on another node and was not kept there: it begins anew")
    command = [sys.executable, "-m", "engine.cli", "up", str(topology.path), "--host", host]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    silence_s = max(LEAST_SILENCE_S, BEATS * topology.timeouts.heartbeat_s)
    ending = _wait(process, stopping, silence_s)
    has_drained = ending != "ended" and _end(process, drain_s(topology))
    if has_drained and has_journal:
        keep(places, node)
    _copy_logs(topology.run_dir, shared / "logs" / host)
    if has_drained:
        shutil.rmtree(topology.run_dir, ignore_errors=True)
        with contextlib.suppress(OSError):  # another host's of this job, on the same machine
            topology.run_dir.parent.rmdir()
    if ending == "alone":
        _begin_again(shared / f"{host}.log")
    return process.returncode


def drain_s(topology: Topology) -> float:
    """Return how long a host may take to end: workers, what they use, then the broker."""
    return DRAINS * (topology.timeouts.drain_s + 2.0) + 5.0


def _wait(process: "subprocess.Popen[bytes]", stopping: list[int], patience_s: float) -> Ending:
    """Return why to go on: the host's launcher ended, somebody asked, or the job's was silent."""
    heard_at = time.monotonic()
    while process.poll() is None and not stopping:
        readable, _, _ = select.select([sys.stdin], [], [], LOOK_S)
        now = time.monotonic()
        if readable:
            if not os.read(sys.stdin.fileno(), 4096):
                return "asked"
            heard_at = now
        elif now - heard_at > patience_s:
            log.error("nothing was heard from the job's launcher", seconds=round(now - heard_at))
            return "alone"
    return "asked" if stopping else "ended"


def _begin_again(book: Path) -> None:
    """Ask Slurm to begin a batch job again, until it does; what it answers goes to a file.

    Raises: NodeFailed if it never does; OSError.
    """
    job_id, deadline = os.environ["SLURM_JOB_ID"], time.monotonic() + INSIST_S
    while True:
        try:
            if "BatchFlag=1" in ask("scontrol", "--oneliner", "show", "job", job_id):
                _note(book, f"nothing was heard from job {job_id}'s launcher: begin it again")
                ask("scontrol", "requeue", job_id)
        except NodeFailed as wrong:
            _note(book, str(wrong))
            if time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(INSIST_EVERY_S)


def _note(book: Path, text: str) -> None:
    """Write to a host's log, which nobody else does once its `srun` is gone."""
    with book.open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def _end(process: "subprocess.Popen[bytes]", patience_s: float) -> bool:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        log.warning("the launcher did not drain in time, killed")
        process.kill()
        process.wait()
        return False
    return True


def _copy_logs(run_dir: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # logs explain a run and do not decide it
        shutil.copytree(run_dir / "logs", target, dirs_exist_ok=True)


if __name__ == "__main__":
    sys.exit(main())
