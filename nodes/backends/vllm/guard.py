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
from types import FrameType

from engine.process import die_with_parent

GRACE_S = 5.0


class _Asked(Exception):  # noqa: N818 - a signal, not an error
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command to its end or ours; return the exit status."""
    signal.signal(signal.SIGTERM, _ask)
    die_with_parent(signal.SIGTERM)
    command = list(sys.argv[1:] if arguments is None else arguments)
    process = subprocess.Popen(command, process_group=0)
    try:
        process.wait()
    except (_Asked, KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _tell(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    finally:
        _tell(process.pid, signal.SIGKILL)
    status = process.wait()
    return status if status >= 0 else 128 - status


def _ask(_signal: int, _frame: FrameType | None) -> None:
    raise _Asked


def _tell(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main())
