"""A trainer that writes down all that it sees, and may be killed and started again.

It submits the same rollouts under the same ids in each of its lives, and takes results until the
broker owes none. A line about what it is about to do is on disk before it does it.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from engine import Client, Task
from engine.messages import Result


class Log:
    """JSON lines in a file of this life's own."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, event: str, *, sync: bool = False, **found: Any) -> None:
        """Append a line; with sync it is on disk on return."""
        self._file.write(json.dumps({"event": event, **found}).encode() + b"\n")
        if sync:
            os.fdatasync(self._file.fileno())


class Listening:
    """The client's codec, and an ear on the results that pass it."""

    def __init__(self, codec: Any, log: Log) -> None:
        self._codec = codec
        self._log = log

    def decode(self, frames: Any) -> Any:
        """Decode, and note what it was."""
        message, body = self._codec.decode(frames)
        if isinstance(message, Result):
            self._log.write("wire", seq=message.seq, rollout_id=message.rollout_id)
        return message, body


def submit_everything(client: Client, log: Log, options: argparse.Namespace) -> None:
    """Submit every group, as in every life before."""
    payload = json.loads(options.payload)
    for first in range(0, options.rollouts, options.group_size):
        group = f"g{first // options.group_size}"
        ids = [f"{group}-{number}" for number in range(options.group_size)]
        log.write("submitted", ids=ids, sync=True)
        task = Task(f"task-{group}", options.kind, payload)
        client.submit(task, options.group_size, group_id=group, rollout_ids=ids)
        log.write("accepted", ids=ids)


def take_everything(client: Client, log: Log, ack_delay_s: float) -> None:
    """Take results until nothing is owed; the client acknowledges one as the next is asked for."""
    last = None
    for rollout in client.rollouts():
        if last is not None:
            log.write("acked", seq=last)
        last = rollout.seq
        log.write(
            "received",
            sync=True,
            seq=rollout.seq,
            rollout_id=rollout.rollout_id,
            outcome=rollout.outcome,
            reward=rollout.reward,
            trainable=rollout.trainable,
            tokens=len(rollout.trajectory) if rollout.trajectory else 0,
        )
        time.sleep(ack_delay_s)


def main() -> int:
    """Live once; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", required=True, type=Path)
    parser.add_argument("--log", required=True, type=Path)
    parser.add_argument("--client-id", default="trainer")
    parser.add_argument("--rollouts", required=True, type=int)
    parser.add_argument("--group-size", default=8, type=int)
    parser.add_argument("--kind", default="chaoskinds.sleeper")
    parser.add_argument("--payload", default="{}")
    parser.add_argument("--window", default=256, type=int)
    parser.add_argument("--ack-delay-s", default=0.0, type=float)
    options = parser.parse_args()
    log = Log(options.log)
    log.write("start", client_id=options.client_id, pid=os.getpid())
    with Client(
        options.topology, options.client_id, window=options.window, connect_s=30.0
    ) as client:
        submit_everything(client, log, options)
        take_everything(client, log, options.ack_delay_s)
    log.write("end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
