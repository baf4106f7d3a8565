"""Who has no key, a wrong one, or another's name is refused, counted and told; the rest goes on."""

import asyncio
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from engine import AccessRefused, AsyncClient, Client, KeysError, Refused, Task
from engine.messages import (
    Boot,
    Cancel,
    Heartbeat,
    Hello,
    NodeHello,
    Problem,
    StageResult,
    Welcome,
    WorkerHello,
)
from engine.security import Line, OwnKey
from engine.topology import BROKER_EDGES

from .kit import Keyed, make_keys, with_keys_of

TOLD_S = 2.0
"""How soon a refused peer must know; measured from its first look."""
SLOW_S = 20.0
"""The same where the machine, and not the wait, is what takes long."""


@contextmanager
def soon() -> Iterator[None]:
    """Expect that what happens in here is over within TOLD_S of this process's own time."""
    began, worked = time.monotonic(), time.process_time()
    yield
    waited = time.monotonic() - began
    assert waited < TOLD_S or time.process_time() - worked > waited / 4, waited


def strangers(site: Keyed, directory: Path) -> OwnKey:
    """Return a key that is not on the list, with the right server's key."""
    theirs = make_keys(directory / "theirs")
    ours = site.keys.allowed()
    text = theirs.allowed().text().replace(theirs.allowed().server.encode(), ours.server.encode())
    (directory / "theirs" / "allowed.json").write_bytes(text)
    return theirs.own("t", "trainer")


def refusal(site: Keyed, edge: str, key: OwnKey | None) -> str:
    """Return what a connecting socket is told."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    wire = context.socket({"results": zmq.PUSH, "events": zmq.SUB}.get(edge, zmq.DEALER))
    line = Line(wire, site.site.endpoint(edge), key)
    deadline = time.monotonic() + SLOW_S
    try:
        while time.monotonic() < deadline:
            told = line.look(time.monotonic()).refused
            if told:
                return told
            time.sleep(0.01)
    finally:
        line.close()
        context.destroy(linger=0)
    return ""


def test_a_client_without_a_key_is_told_so(site: Keyed) -> None:
    with soon(), pytest.raises(AccessRefused, match="asks for a key"):
        Client(site.site.endpoint("front"), connect_s=SLOW_S)


@pytest.mark.parametrize("edge", BROKER_EDGES)
def test_no_port_takes_a_peer_without_a_key(site: Keyed, edge: str) -> None:
    before = site.status()["security"]["no_handshake"].get(edge, 0)
    assert "asks for a key" in refusal(site, edge, None)
    assert site.status()["security"]["no_handshake"][edge] > before


def test_a_client_with_an_unknown_key_is_told_so(site: Keyed, tmp_path: Path) -> None:
    strangers(site, tmp_path)
    file = with_keys_of(site, tmp_path, tmp_path / "theirs")
    before = site.refused().get("front: unknown key", 0)
    with soon(), pytest.raises(AccessRefused, match=r"trainer t.* not on the allow-list"):
        Client(file, key="t", connect_s=SLOW_S)
    assert site.refused()["front: unknown key"] > before


def test_a_client_that_expects_another_server_is_told_so(site: Keyed, tmp_path: Path) -> None:
    make_keys(tmp_path / "theirs")
    file = with_keys_of(site, tmp_path, tmp_path / "theirs")
    with soon(), pytest.raises(AccessRefused, match="server key is not the one in"):
        Client(file, key="t", connect_s=SLOW_S)


def test_an_asyncio_client_is_told_the_same(site: Keyed, tmp_path: Path) -> None:
    strangers(site, tmp_path)
    file = with_keys_of(site, tmp_path, tmp_path / "theirs")

    async def connect() -> None:
        async with AsyncClient(file, key="t", connect_s=SLOW_S):
            pass

    with soon(), pytest.raises(AccessRefused, match=r"trainer t.* not on the allow-list"):
        asyncio.run(connect())


def test_a_secret_that_others_may_read_is_refused(site: Keyed, tmp_path: Path) -> None:
    copy = tmp_path / "theirs"
    shutil.copytree(site.keys.directory, copy)
    (copy / "t.secret").chmod(0o640)
    with pytest.raises(KeysError, match="may be read by others: chmod 600"):
        Client(with_keys_of(site, tmp_path, copy), key="t")


@pytest.mark.parametrize("edge", BROKER_EDGES)
def test_no_port_takes_an_unknown_key(site: Keyed, edge: str, tmp_path: Path) -> None:
    assert "not on the allow-list" in refusal(site, edge, strangers(site, tmp_path))
    assert site.refused()[f"{edge}: unknown key"] >= 1


@pytest.mark.parametrize("edge", ["control", "results"])
def test_a_trainers_key_does_not_enter_where_nodes_do(site: Keyed, edge: str) -> None:
    assert "may not enter by this port" in refusal(site, edge, site.keys.own("t", "trainer"))
    assert site.refused()[f"{edge}: trainer key"] >= 1


def test_a_hosts_key_does_not_enter_where_trainers_do(site: Keyed) -> None:
    assert "may not enter by this port" in refusal(site, "front", site.keys.own("here", "host"))
    assert site.refused()["front: host key"] >= 1


def test_work_is_for_the_workers_own_host(site: Keyed) -> None:
    """Each worker's pipe takes its host's key alone."""
    pipes = sorted(listening(site.site.supervisor.pids["broker"]) - front_ports(site))
    assert len(pipes) == 4
    took = {
        host: [
            not refusal_at(f"tcp://127.0.0.1:{port}", site.keys.own(host, "host")) for port in pipes
        ]
        for host in ("here", "there")
    }
    assert (took["here"].count(True), took["there"].count(True)) == (3, 1)
    assert all(one != other for one, other in zip(took["here"], took["there"], strict=True))


def test_a_trainer_speaks_for_itself_alone(site: Keyed) -> None:
    with site.peer("front", site.keys.own("u", "trainer")) as peer:
        for name in ("t", "t-0", "ux", "operator"):
            peer.say(Hello(name, 8))
            told = peer.hear()
            assert isinstance(told, Problem)
            assert (told.code, told.field) == ("access", "client_id")
        peer.say(Hello("u-0", 8))
        assert isinstance(peer.hear(), Welcome)
        peer.say(Cancel("c", everything=True, client_id="t"))
        told = peer.hear()
        assert isinstance(told, Problem)
        assert told.code == "access"
    with pytest.raises(AccessRefused, match="speaks for u or u-"), site.client("u") as client:
        client.cancel(["r"], client_id="t-1")
    with pytest.raises(AccessRefused, match="speaks for u or u-"):
        Client(site.topology.path, "t-1", key="u")
    with site.client("operator") as client:
        assert client.cancel(["r"], client_id="t-1").unknown == ("r",)
    assert site.status()["loop"]["denied_on_front"] >= 6


def test_a_node_speaks_for_its_own_host_alone(site: Keyed) -> None:
    here = site.keys.own("here", "host")
    theirs = next(w for w in site.status()["workers"] if w["host"] == "there")["worker_id"]
    fresh = "run-1-0123456789ab"
    said = [
        (theirs, Heartbeat(theirs, (), 0.0)),
        (fresh, WorkerHello(fresh, "run-1", "there", "run", 4, 2**20, ())),
        ("run-0-0123456789ab", WorkerHello(fresh, "run-1", "there", "run", 4, 2**20, ())),
        ("run-0-0123456789ac", NodeHello("b", "run-0", "router", "here", {"policy_version": 9.0})),
        ("run-0-0123456789ad", NodeHello("b", "run-0", "worker", "there", {})),
    ]
    for name, message in said[1:]:
        with site.peer("control", here, name=name) as peer:
            peer.say(message)
            told = peer.hear(node=True)
            assert isinstance(told, Problem), message
            assert told.code == "access"
    with site.peer("control", here, name=theirs) as peer:  # taken: it is not even heard
        peer.say(said[0][1])
        assert peer.hear(1.0, node=True) is None
    assert site.status()["loop"]["denied_on_control"] >= 4


def test_a_stolen_connection_gets_nothing(site: Keyed) -> None:
    """ZeroMQ gives a routing id that is free again to whoever asks; its key does not follow."""
    t, u = site.keys.own("t", "trainer"), site.keys.own("u", "trainer")
    with site.peer("front", t, name="guessed") as owner:
        owner.say(Hello("t-9", 8))
        assert isinstance(owner.hear(), Welcome)
        with site.peer("front", u, name="guessed") as thief:
            thief.say(Hello("u-9", 8))
            assert thief.hear(1.0) is None
        owner.say(Hello("t-9", 8))
        assert isinstance(owner.hear(), Welcome)
    deadline = time.monotonic() + SLOW_S
    told = None
    while told is None and time.monotonic() < deadline:  # until ZeroMQ has forgotten its owner
        with site.peer("front", u, name="guessed") as thief:
            thief.say(Hello("u-9", 8))
            told = thief.hear(0.5)
    assert isinstance(told, Problem)
    assert (told.code, told.message) == ("access", "this connection's id belongs to another key")


def test_a_forged_result_changes_nothing(site: Keyed) -> None:
    before = site.status()["loop"].get("denied_on_results", 0)
    theirs = next(w for w in site.status()["workers"] if w["host"] == "there")["worker_id"]
    forged = StageResult(theirs, "r-1", "run", 1, "done", 0.0, outcome="truncated", reward=1.0)
    with site.peer("results", site.keys.own("here", "host"), zmq.PUSH) as peer:
        peer.say(forged)
        site.site.until(lambda: site.status()["loop"].get("denied_on_results", 0) > before)


def test_noise_on_every_port_is_no_peer(site: Keyed) -> None:
    """ZMTP 1.0 takes anything for a peer, and HTTP is what scanners speak."""
    noise = (b"\x01\x00\x05\x00hello", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, b"")
    for port in front_ports(site) | listening(site.site.supervisor.pids["broker"]):
        for said in noise:
            with socket.create_connection(("127.0.0.1", port), 10) as peer:
                peer.sendall(said)
    edges = set(BROKER_EDGES)
    site.site.until(lambda: edges <= set(site.status()["security"]["no_handshake"]))


def test_a_message_over_the_limit_cuts_its_sender_off_alone(site: Keyed) -> None:
    large = b"x" * (site.topology.limits.message_bytes + 1)
    for edge, key in (
        ("front", site.keys.own("u", "trainer")),
        ("control", site.keys.own("here", "host")),
    ):
        with site.peer(edge, key) as peer:
            monitor = peer.socket.get_monitor_socket(int(zmq.EVENT_DISCONNECTED))
            peer.socket.send_multipart([b"rollmq/1 ping", large])
            assert monitor.poll(1000 * SLOW_S), edge
            monitor.close()
    with site.client() as client, pytest.raises(Refused, match=r"over limits\.message_bytes"):
        client.submit(Task("t", "kinds.echo", {"x": large.decode()}))


def test_events_are_for_keys_on_the_list(site: Keyed) -> None:
    with site.peer("events", site.keys.own("t", "trainer"), zmq.SUB) as peer:
        peer.socket.setsockopt(zmq.SUBSCRIBE, b"")
        assert peer.socket.poll(1000 * SLOW_S)
        assert Boot.kind.encode() in peer.socket.recv_multipart()[0]


def refusal_at(endpoint: str, key: OwnKey) -> str:
    """Return what a socket is told; empty once its handshake has succeeded."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    wire = context.socket(zmq.PULL)
    key.apply(wire)
    monitor = wire.get_monitor_socket(
        int(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    )
    wire.connect(endpoint)
    try:
        assert monitor.poll(1000 * SLOW_S), endpoint
        event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
        return "" if event == zmq.EVENT_HANDSHAKE_SUCCEEDED else "refused"
    finally:
        wire.disable_monitor()
        monitor.close()
        context.destroy(linger=0)


def front_ports(site: Keyed) -> set[int]:
    return {int(site.site.endpoint(edge).rpartition(":")[2]) for edge in BROKER_EDGES}


def listening(pid: int) -> set[int]:
    """Return the TCP ports that a process listens on."""
    links = [
        str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()
    ]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes
    }
