"""Children of this process whose end is an event of the loop, without threads and polling.

Job: tell when a process that we started has ended, and with what status; end it for certain.
Does not know: what the process is for.
Invariants: the process is reaped once, here; nobody else waits for it. Nothing is ended but the
process that was named and, where asked, the group that it leads.
"""

import asyncio
import contextlib
import os
import signal

HANG_UP_S = 1.0  # from SIGHUP to SIGKILL


class Child:
    """One process, started elsewhere, by its pid.

    Raises: OSError if the process is not a child that can be waited for.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(pid)
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return not self.ended.done()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        if not self.ended.done():
            self.ended.set_result(os.waitstatus_to_exitcode(status))

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to it, or to the group that it leads."""
        if not self.is_alive:
            return
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    async def kill(self, *, group: bool, within_s: float) -> int | None:
        """Hang up on it, then kill it; return its status, or None if it does not end `within_s`.

        An entrance to a sandbox that hears of its end can end and bury what it has started.
        """
        self.signal(signal.SIGHUP)
        await asyncio.wait({self.ended}, timeout=HANG_UP_S)
        self.signal(signal.SIGKILL, group=group)
        await asyncio.wait({self.ended}, timeout=within_s)
        return self.ended.result() if self.ended.done() else None
