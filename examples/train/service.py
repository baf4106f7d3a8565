"""rollmq itself: `rollmq up`, beside the trainer for as long as that lives.

Job: start the topology, wait until it can be used, and drain it at the end.
Does not know: what it is used for.
Invariants: nothing of it outlives the trainer, however that ends. The wait has a deadline, and an
end before it says what the launcher said last.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine import BrokerUnreachable, Client, NodeFailed, NodeRefused, Topology, cli
from engine.process import child_environment, die_with_parent

LOOK_S = 0.5
STOP_S = 60.0  # three rounds of draining, by topology.yaml's own times
LAST_CHARACTERS = 3000


@contextmanager
def running(topology: Topology, log: Path) -> Iterator[None]:
    """Run `rollmq up` until the block ends; enter the block once every backend is open.

    Raises: NodeFailed if it ends, or is not ready within `timeouts.start_s`.
    """
    command = [sys.executable, "-m", "examples.train.service", str(topology.path)]
    with log.open("wb") as output:
        # A group of its own: Ctrl-C is the trainer's, which then ends this.
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=child_environment(), process_group=0
        )
    try:
        _wait(topology, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()  # its nodes die with it
            process.wait()


def _wait(topology: Topology, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + topology.timeouts.start_s
    while not _is_open(topology):
        if process.poll() is not None or time.monotonic() > give_up_at:
            told = log.read_text(encoding="utf-8", errors="replace")[-LAST_CHARACTERS:]
            raise NodeFailed(f"the topology did not come up; see {log}, which ends with:\n{told}")
        time.sleep(LOOK_S)


def _is_open(topology: Topology) -> bool:
    try:
        with Client(topology.path, "looks", connect_s=LOOK_S) as client:
            found = client.backends()
    except (BrokerUnreachable, NodeRefused):
        return False
    wanted = sum(backend.count for backend in topology.backends)
    return sum(backend.state == "open" for backend in found) >= wanted


def main() -> int:
    """Be `rollmq up`, and end when the parent does."""
    die_with_parent(signal.SIGTERM)
    return cli.main(["up", sys.argv[1]])


if __name__ == "__main__":
    sys.exit(main())
