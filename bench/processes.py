"""Child processes of a bench: spawned, watched, and stopped by the handle that started them.

Nothing here looks for processes by name, and spawn instead of fork keeps ZeroMQ contexts, event
loops and threads of the parent out of the children.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

SPAWN = multiprocessing.get_context("spawn")
STOP_S = 3.0
Calls = Mapping[str, tuple[Callable[..., None], tuple[Any, ...]]]


class CandidateError(Exception):
    """A candidate could not be started, died, or stopped answering; the message says which."""


class Children:
    """The processes of one candidate, by name."""

    def __init__(self, candidate: str, processes: Mapping[str, BaseProcess]) -> None:
        self.candidate = candidate
        self.processes = processes

    def failure(self, what: str) -> CandidateError:
        """Return an error that says what happened and which processes are dead."""
        dead = [
            f"{name} exited with status {process.exitcode}"
            for name, process in self.processes.items()
            if process.exitcode is not None
        ]
        return CandidateError(f"{self.candidate}: {what} ({'; '.join(dead) or 'all alive'})")

    def stop(self) -> None:
        """End every process: SIGTERM, then SIGKILL for those that stay."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.join(STOP_S)
            if process.exitcode is None:
                process.kill()
                process.join()


@contextmanager
def children(candidate: str, calls: Calls) -> Iterator[Children]:
    """Run each call in its own process for the length of the block.

    Raises:
        OSError: a process cannot be started.

    """
    processes: dict[str, BaseProcess] = {}
    held = Children(candidate, processes)
    try:
        for name, (target, arguments) in calls.items():
            process = SPAWN.Process(target=target, args=arguments, name=name, daemon=True)
            process.start()
            processes[name] = process
        yield held
    finally:
        held.stop()
