"""Run a server with everything that it starts, and leave none of it behind.

    python -m nodes.backends.vllm.guard COMMAND [ARGUMENT ...]

A vLLM server starts engine processes of its own; where it is killed, they stay and keep the GPU.

Job: start the command as the leader of a process group; when the command ends, when this process
is asked to stop, or when whoever started it is gone, end the whole group.
Does not know: what the command is.
Invariants: after this process nothing of the group runs. The exit status is the command's, or 128
and the signal that ended it.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from engine.process import die_with_parent

GRACE_S = 5.0
HEARD = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command to its end or ours; return the exit status."""
    # Held back and waited for, so that no signal falls between the command's start and its owner.
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    die_with_parent(signal.SIGTERM)
    command = list(sys.argv[1:] if arguments is None else arguments)
    process = subprocess.Popen(command, process_group=0, preexec_fn=_hear_again)  # noqa: PLW1509 - one thread
    try:
        asked = False
        while process.poll() is None and not asked:
            asked = signal.sigwait(HEARD) != signal.SIGCHLD
        if asked:
            _tell(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
    finally:
        _tell(process.pid, signal.SIGKILL)
    status = process.wait()
    return status if status >= 0 else 128 - status


def _hear_again() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)


def _tell(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main())
