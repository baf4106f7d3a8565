"""A launcher in a process of its own, to be killed, interrupted and asked to stop.

`python tests/chaos/launcher.py TOPOLOGY` says `ready` on standard output once every node is up.
"""

import signal
import sys
import time
from pathlib import Path

from engine import load
from engine.supervisor import Supervisor


def main() -> int:
    """Keep a topology up until SIGTERM or SIGINT; return the exit status."""
    stopping = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.append(True))
    with Supervisor(load(Path(sys.argv[1]))) as supervisor:
        supervisor.wait_ready(60.0)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while not stopping:
            supervisor.watch()
            time.sleep(0.02)
    return 0


if __name__ == "__main__":
    sys.exit(main())
