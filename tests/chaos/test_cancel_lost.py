"""A broadcast that is lost costs a cancel one heartbeat: the truth is in the heartbeat's reply.

The broker's socket of events is moved aside, and a relay takes its place, which passes everything
on but `stop`. A worker that starts then hears the broker through the relay alone.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from .chaoskinds.stoppable import notes
from .conftest import Start
from .scene import Scene, until
from .test_cancel import STAGES
from .test_cancel_reaches import Cancelled

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

HEARTBEAT_S = 3.0
SLACK_S = 2.0  # of a machine that does something else, too
ROUNDS = 3
STOP = b"rollmq/1 stop"


class Relay:
    """Stands between a broker's events and whoever connects from now on."""

    def __init__(self, socket_path: Path, *, drops: bool) -> None:
        self.drops = drops
        self.passed: list[bytes] = []
        self.dropped: list[bytes] = []
        self.subscribers = 0
        self._context = zmq.Context()
        behind = socket_path.with_name("events-behind")
        socket_path.rename(behind)
        self._from = self._context.socket(zmq.SUB)
        self._from.subscribe(b"")
        self._from.connect(f"ipc://{behind}")
        self._to = self._context.socket(zmq.XPUB)
        self._to.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._to.bind(f"ipc://{socket_path}")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay")
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in (self._from, self._to):
            poller.register(socket, zmq.POLLIN)
        while not self._over.is_set():
            ready = dict(poller.poll(50))
            if self._to in ready:
                self.subscribers += self._to.recv()[:1] == b"\1"
            if self._from in ready:
                self._pass_on(self._from.recv_multipart())

    def _pass_on(self, frames: list[bytes]) -> None:
        if self.drops and frames[0] == STOP:
            self.dropped.append(frames[0])
        else:
            self.passed.append(frames[0])
            self._to.send_multipart(frames)

    def close(self) -> None:
        self._over.set()
        self._thread.join(10.0)
        self._context.destroy(linger=0)


@contextmanager
def relayed(scene: Scene, *, drops: bool) -> Iterator[Relay]:
    """Start the worker again, so that it hears of events through a relay alone."""
    before = scene.node("run-0")
    relay = Relay(scene.directory / "run" / "s" / "events", drops=drops)
    try:
        os.kill(before, signal.SIGKILL)
        until(lambda: scene.nodes.get("run-0", before) != before, "a new guardian")
        until(lambda: relay.subscribers, "its subscription")
        until(lambda: b"rollmq/1 boot" in relay.passed, "events through the relay")
        yield relay
    finally:
        relay.close()


@pytest.mark.parametrize("drops", [True, False], ids=["lost", "heard"])
def test_a_handler_is_stopped_within_a_heartbeat_of_a_lost_broadcast(
    start: Start, tell: Callable[[str], None], drops: bool
) -> None:
    timeouts = {"heartbeat_s": HEARTBEAT_S, "lease_s": 4 * HEARTBEAT_S, "cancel_grace_s": 1.0}
    scene = start(stages=STAGES, timeouts=timeouts)
    took_s = []
    with relayed(scene, drops=drops) as relay, scene.client() as client:
        for _ in range(ROUNDS):
            case = Cancelled(scene, "run", "sleep")
            began = case.cancel(client, case.stay(client, 4), running=4)
            assert {receipt.usage.tokens for receipt in case.receipts.values()} == {64}
            stopped = [note["at"] - began for note in notes(case.notes, "was stopped")]
            took_s.append(max(stopped))
            case.notes.unlink()
            assert len(relay.dropped) == (len(took_s) if drops else 0)
            assert relay.passed.count(STOP) == (0 if drops else len(took_s))
        assert [rollout.outcome for rollout in client.rollouts()] == ["cancelled"] * 4 * ROUNDS
    shown = ", ".join(f"{seconds:.2f}" for seconds in took_s)
    tell(f"cancel until the last handler stopped, {'lost' if drops else 'heard'}: {shown} s")
    if drops:
        assert max(took_s) < HEARTBEAT_S + SLACK_S, "healed by the next heartbeat"
    else:
        assert max(took_s) < SLACK_S, "no heartbeat was needed"
