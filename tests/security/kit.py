"""A topology over CURVE on loopback addresses, for tests of who may do what.

    with keyed(short_path) as site:
        with site.client() as client: ...      # under the key of trainer `t`

Two hosts, `here` with the broker and `there` with the run workers; keys of the trainers `t` and `u`
beside the operator's.
"""

import random
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import zmq

from engine import Client, Task
from engine.messages import TO_NODE, TO_TRAINER
from engine.security import KeyStore, OwnKey
from engine.supervisor import Supervisor
from engine.topology import Topology
from engine.wire import Codec, encode
from tests.topology_kit import ECHO, Site, prepared

PATIENCE_S = 60.0
START_S = 240.0  # of a machine that has much else to do

TEXT = """\
version: 1
durability: process
keys: keys
hosts:
  here: {{address: 127.0.0.1}}
  there: {{address: 127.0.0.2}}
broker: {{port: {port}}}
limits: {{message_bytes: 1MiB}}
timeouts: {{heartbeat_s: 0.3, cancel_grace_s: 0.5, drain_s: 2, retry_delay_s: 0.1}}
stages:
  - {{name: init, slots: 16, workers: {{here: 1}}}}
  - {{name: run, slots: 16, workers: {{here: 1, there: 1}}}}
  - {{name: eval, slots: 16, workers: {{here: 1}}}}
"""


def free_ports(count: int = 4) -> int:
    """Return the first of free ports in a row, as far as one can know."""
    chance = random.Random()
    while True:
        first = chance.randrange(20_000, 30_000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


@dataclass(frozen=True, slots=True)
class Keyed:
    """A topology with keys that runs."""

    site: Site
    keys: KeyStore

    @property
    def topology(self) -> Topology:
        return self.site.topology

    def client(self, name: str = "t", **options: Any) -> Client:
        return Client(self.topology.path, key=name, **options)

    def status(self) -> dict[str, Any]:
        with self.client("operator") as client:
            return client.status()

    def refused(self) -> dict[str, int]:
        """Return what handshakes were refused for."""
        found: dict[str, int] = self.status()["security"]["refused"]
        return found

    def works(self, rollouts: int = 8, name: str = "t") -> None:
        """Expect that a trainer gets what it asks for."""
        with self.client(name, patience_s=PATIENCE_S) as client:
            client.submit(Task("works", "kinds.echo", {}), rollouts)
            outcomes = [rollout.outcome for rollout in client.rollouts()]
        assert outcomes == ["completed"] * rollouts

    def peer(self, edge: str, key: OwnKey | None, kind: int = zmq.DEALER, name: str = "") -> "Raw":
        return Raw(self.site.endpoint(edge), key, kind, name)


class Raw:
    """A socket under a key of one's choice that says anything."""

    def __init__(self, endpoint: str, key: OwnKey | None, kind: int, name: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        if name:
            self.socket.setsockopt(zmq.IDENTITY, name.encode())
        if key is not None:
            key.apply(self.socket)
        self.socket.connect(endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(linger=0)

    def say(self, message: Any, body: list[bytes] | None = None) -> None:
        self.socket.send_multipart(encode(message, body or []))

    def hear(self, wait_s: float = 20.0, *, node: bool = False) -> Any:
        """Return the next message; None if none came."""
        if not self.socket.poll(int(1000 * wait_s)):
            return None
        codec: Codec[Any] = Codec(TO_NODE if node else TO_TRAINER)
        return codec.decode(self.socket.recv_multipart())[0]


def make_keys(directory: Path) -> KeyStore:
    keys = KeyStore(directory)
    keys.make(["here", "there"])
    for name in ("t", "u"):
        keys.add(name, "trainer")
    return keys


def with_keys_of(site: Keyed, directory: Path, keys: Path) -> Path:
    """Return a topology file that is the site's but for its keys."""
    text = site.topology.path.read_text().replace("keys: keys", f"keys: {keys}")
    file = directory / "other.yaml"
    file.write_text(text)
    return file


@contextmanager
def keyed(
    directory: Path, text: str = TEXT, kinds: Mapping[str, str] | None = None
) -> Iterator[Keyed]:
    """Start a topology with keys, wait until every node is ready, and stop all of it at the end."""
    keys = make_keys(directory / "keys")
    first = free_ports(6)
    text = text.format(port=first, router=first + 4)
    with (
        prepared(directory, text, kinds or {"echo": ECHO}) as topology,
        Supervisor(topology) as supervisor,
    ):
        supervisor.wait_ready(START_S)
        yield Keyed(Site(topology, supervisor), keys)
