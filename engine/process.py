"""A process of a topology: how it is started, kept up and ended, and tied to who started it.

Job: start a process with its log in a file, say how long to wait before the next start, end it in
time; and make the kernel end a node whose launcher is gone, so that no run leaves processes behind.
Does not know: what the process does.
Invariants: without `ROLLMQ_PARENT` in the environment nothing ties a process to its launcher: a
node started by hand belongs to its shell. Linux only.
"""

import ctypes
import gc
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PARENT = "ROLLMQ_PARENT"
PR_SET_PDEATHSIG = 1
DOUBLINGS = 16  # of a delay; every longest delay is reached before


@dataclass(slots=True)
class Backoff:
    """How long to wait before the next start of what has ended; it doubles while lives are short.

    short_s: a life below this is short. first_s, most_s: the delay after one short life, and the
    longest.
    """

    short_s: float
    first_s: float
    most_s: float
    short_lives: int = 0

    def ended(self, life_s: float) -> float:
        """Count a life of so many seconds; return the delay before the next start in seconds."""
        if life_s >= self.short_s:
            self.short_lives = 0
            return 0.0
        self.short_lives += 1
        return min(self.most_s, self.first_s * 2.0 ** min(self.short_lives - 1, DOUBLINGS))


def node_backoff() -> Backoff:
    """Return how often a node of a topology is started again."""
    return Backoff(short_s=5.0, first_s=0.2, most_s=5.0)


def spawn(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own that appends what it says to a file.

    Without an environment it gets this one, and this process as its parent.

    Raises: OSError.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=child_environment() if environment is None else environment,
            process_group=0,
        )


def ended_by(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Return whether a process ended by a monotonic time; its group is killed if it did not."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    return True


def last_lines(log: Path, count: int) -> list[str]:
    """Return the end of what a process has said. Raises: OSError."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]


def work_in_batches() -> None:
    """Ask the scheduler not to interrupt whoever runs each time a message wakes this process.

    On a machine with fewer cores than processes that is most of what a message costs. Where a core
    is free nothing changes. Threads made later, ZeroMQ's among them, inherit it.
    """
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def spare_collector() -> None:
    """Keep the garbage collector from walking a long-lived process's records again and again.

    Call it once everything is set up; what exists then is never walked, what comes later seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def child_environment() -> dict[str, str]:
    """Return this environment plus the name of this process as the parent."""
    return {**os.environ, PARENT: str(os.getpid())}


def die_with_parent(end: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel for a signal when the launcher's thread that started this node ends.

    With another signal than SIGKILL a node that owns something may clean up first.

    Call it first in a node's main. The launcher may have died between fork and this call, so its
    id is compared after asking.

    Raises: SystemExit if the launcher is gone already; OSError if the kernel refuses.
    """
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, end, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):
        raise SystemExit(f"the launcher, process {parent}, is gone")
