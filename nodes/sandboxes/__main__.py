"""The keeper of a host's sandboxes: `python -m nodes.sandboxes --topology FILE --name NODE`.

With `--after PIPE` it is the undertaker: a process that waits until its keeper is gone, and ends
what is left if no other keeper comes. The launcher sends SIGTERM by dying, so that the keeper can
clean up; the undertaker is there for the case that the keeper itself was killed.
"""

import argparse
import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import zmq

from engine.errors import RemoteProtocolError, RollmqError
from engine.logs import configure, get_logger
from engine.messages import TO_NODE, Pins, Unpinned
from engine.presence import Presence
from engine.process import die_with_parent
from engine.reread import reread_on_hangup
from engine.sockets import boot_id, drain, send
from engine.topology import SandboxSpec, Topology, load
from engine.wire import Codec, encode

from .choice import BASE, Maker, choose, make, most
from .keeper import Keeper
from .places import base_dir, records_dir

log = get_logger()
LOCK_S = 20.0  # until a keeper that ends has let go
SUCCESSOR_S = 3.0  # how long an undertaker waits for the next keeper


class Node:
    """One keeper on the bus."""

    def __init__(self, topology: Topology, name: str) -> None:
        assert topology.sandboxes is not None
        self._topology = topology
        self._name = name
        self._host = topology.node(name).host
        self._over = asyncio.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        boot = boot_id(name)
        self._presence = Presence(self._context, topology, name, boot, "sandboxes")
        self._codec: Codec[Any] = Codec(TO_NODE)
        self._asked_at = 0.0
        self._keeper, self.provider = _keeper(topology, topology.sandboxes, self._host)

    async def run(self) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._over.set)
        log.info("sandboxes", provider=self.provider, host=self._host)
        await self._keeper.sweep()
        path = self._topology.sandbox_socket(self._host)
        await self._keeper.serve(path, self._over, self._tick)
        self._presence.close()
        self._context.destroy(linger=0)

    async def sweep(self) -> None:
        """End what is left, and nothing else."""
        await self._keeper.sweep()
        await self._keeper.close()

    def _tick(self) -> None:
        now = time.monotonic()
        for frames in drain(self._presence.socket, 64):
            with suppress(RemoteProtocolError):
                message, _ = self._codec.decode(frames)
                if isinstance(message, Unpinned):
                    self._keeper.disowned(list(message.rollouts))
        rollouts = self._keeper.book.to_ask(now)
        if rollouts and now >= self._asked_at:
            self._asked_at = now + self._topology.timeouts.heartbeat_s / 2
            asked = encode(Pins(self._name, self._host, tuple(rollouts)))
            send(self._presence.socket, asked, self._topology.limits.message_bytes)
        self._presence.beat(now, self._keeper.figures() | {f"by_{self.provider}": 1.0})


def _keeper(topology: Topology, spec: SandboxSpec, host: str) -> tuple[Keeper, str]:
    place = records_dir(topology.run_dir) / host
    base = base_dir(place)
    provider = choose(spec)
    maker = make(provider, spec, base, place)
    images = sorted({"" if name == BASE else name for name in spec.images})
    if provider == "bubblewrap" or not images:
        images = sorted({"", *images})

    def other(name: str) -> Maker:
        return make(name, spec, base, place)

    return Keeper(maker, place, base, most(spec), spec.pool, images, other), provider


def _lock(topology: Topology, name: str, patience_s: float) -> IO[bytes] | None:
    """Return the lock of a host's records, None if another keeper has it."""
    place = records_dir(topology.run_dir) / topology.node(name).host
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = (place / "lock").open("ab")
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                return None
            time.sleep(0.05)
        else:
            return file


def _keep(topology: Topology, name: str, lock: IO[bytes]) -> None:
    end, held = os.pipe()  # nobody writes: the undertaker hears when we are gone
    command = [sys.executable, "-m", "nodes.sandboxes", "--topology", str(topology.path)]
    command += ["--name", name, "--after", str(end)]
    undertaker = subprocess.Popen(command, pass_fds=(end,), start_new_session=True)
    os.close(end)

    async def serve() -> None:
        await Node(topology, name).run()

    asyncio.run(serve())
    lock.close()
    os.close(held)
    undertaker.wait(LOCK_S)


def _undertake(topology: Topology, name: str, pipe: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.read(pipe, 1)
    if not any((records_dir(topology.run_dir) / topology.node(name).host).glob("*.json")):
        return
    time.sleep(SUCCESSOR_S)
    lock = _lock(topology, name, 0.0)
    if lock is None:
        return

    async def sweep() -> None:
        await Node(topology, name).sweep()

    asyncio.run(sweep())
    lock.close()


def main(arguments: list[str] | None = None) -> int:
    """Keep a host's sandboxes until SIGTERM or SIGINT; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nodes.sandboxes", description=__doc__)
    parser.add_argument("--topology", required=True, type=Path)
    parser.add_argument("--name", required=True, help="the node's name, such as sandboxes-0")
    parser.add_argument("--after", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.after is None:
        die_with_parent(signal.SIGTERM)
    try:
        topology = load(options.topology)
        configure(options.name, topology.log_level)
        if options.after is not None:
            _undertake(topology, options.name, options.after)
            return 0
        reread_on_hangup(options.topology, options.name)
        lock = _lock(topology, options.name, LOCK_S)
        if lock is None:
            log.critical("another keeper has this host's sandboxes")
            return 1
        _keep(topology, options.name, lock)
    except RollmqError as wrong:
        log.critical("keeper stopped", error=str(wrong))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
