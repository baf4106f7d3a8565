"""Ties between a node and the process that launched it.

Job: make the kernel end a node whose launcher is gone, so that no run leaves processes behind.
Does not know: what the node does, or how it is launched.
Invariants: without `ROLLMQ_PARENT` in the environment nothing is changed: a node started by hand
belongs to its shell. Linux only.
"""

import ctypes
import gc
import os
import signal

PARENT = "ROLLMQ_PARENT"
PR_SET_PDEATHSIG = 1


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
