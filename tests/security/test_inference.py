"""The router's sockets: completions over CURVE, and nobody speaks for another host there."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from engine import NodeRefused, Task
from engine.sockets import Bounds, boot_id
from engine.wire import Codec
from nodes.inference.client import Patience, RouterModel
from nodes.inference.messages import (
    TO_BACKEND,
    TO_RUN_WORKER,
    BackendHello,
    BackendRefused,
    RouterPing,
    RouterPong,
)

from .kit import PATIENCE_S, Keyed, Raw, keyed
from .test_refused import refusal

REFUSED = "refused by the router"
TEXT = """\
version: 1
durability: process
keys: keys
hosts:
  here: {{address: 127.0.0.1}}
  there: {{address: 127.0.0.2}}
broker: {{port: {port}}}
router: {{port: {router}, host: here}}
timeouts: {{heartbeat_s: 0.3, cancel_grace_s: 0.5, drain_s: 2, retry_delay_s: 0.1}}
stages:
  - {{name: run, slots: 16, workers: {{there: 1}}, timeout_s: 120}}
backends:
  - {{name: near, kind: simulator, host: here, options: {{speed: 5}}}}
  - {{name: far, kind: simulator, host: there, options: {{speed: 5}}}}
"""

KINDS = {
    "talk": """\
import numpy as np

from nodes.tasks import Output, Sampling


async def run(context):
    prompt = np.arange(5, 9, dtype=np.int32)
    made = await context.model.generate(context.rollout_id, prompt, Sampling(max_tokens=4))
    return Output(data={"tokens": len(made.token_ids)}, reward=1.0, final=True)
"""
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with keyed(tmp_path_factory.mktemp("inference"), TEXT, KINDS) as site:
        yield site


def talk(site: Keyed, rollouts: int = 8) -> None:
    with site.client(patience_s=PATIENCE_S) as client:
        client.submit(Task("t", "kinds.talk", {}), rollouts)
        ended = [(rollout.outcome, rollout.failures) for rollout in client.rollouts()]
    assert ended == [("completed", ())] * rollouts


def heard(peer: Raw, kinds: tuple[type, ...], wanted: type) -> object:
    """Return the first message of a kind; other kinds are passed over."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if peer.socket.poll(1000):
            message = Codec(kinds).decode(peer.socket.recv_multipart())[0]
            if isinstance(message, wanted):
                return message
    return None


def test_completions_come_from_both_hosts(site: Keyed) -> None:
    site.site.until(lambda: len(open_backends(site)) == 2, PATIENCE_S)
    talk(site, 32)


def open_backends(site: Keyed) -> list[str]:
    nodes = site.status()["nodes"]
    parts = [part for node in nodes if node["role"] == "router" for part in node["parts"]]
    return [part["name"] for part in parts if part["state"] == "open"]


@pytest.mark.parametrize("edge", ["router", "router_backends"])
def test_only_hosts_enter(site: Keyed, edge: str) -> None:
    for key in (None, site.keys.own("t", "trainer"), site.keys.own("operator", "operator")):
        assert "refuses" in refusal(site, edge, key)


def test_a_backend_lives_on_its_keys_host(site: Keyed) -> None:
    name = boot_id("near-0")
    with site.peer("router_backends", site.keys.own("there", "host"), name=name) as peer:
        peer.say(BackendHello(name, "near-0", "m", 4, 0))
        told = heard(peer, TO_BACKEND, BackendRefused)
        assert isinstance(told, BackendRefused)
        assert "is not on the host of this key (host there)" in told.reason
    talk(site)


def test_a_run_worker_lives_on_its_keys_host(site: Keyed) -> None:
    worker = next(node.name for node in site.topology.nodes() if node.role == "worker")
    mine, theirs = site.keys.own("there", "host"), site.keys.own("here", "host")
    with site.peer("router", mine, name=boot_id(worker)) as peer:
        peer.say(RouterPing(1, ()))
        assert isinstance(heard(peer, TO_RUN_WORKER, RouterPong), RouterPong)
    with site.peer("router", theirs, name=boot_id(worker)) as peer:
        peer.say(RouterPing(1, ()))
        assert heard_soon(peer) is None
    talk(site)


def test_a_run_worker_that_is_refused_says_so_between_heartbeats(site: Keyed) -> None:
    worker = next(node.name for node in site.topology.nodes() if node.role == "worker")
    key = site.keys.own("t", "trainer")

    async def told() -> None:
        waits = Patience(heartbeat_s=600.0, lost_after_s=6000.0, deadline_s=600.0)
        model = RouterModel(site.site.endpoint("router"), worker, Bounds(), waits, key)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not any(REFUSED in entry["event"] for entry in logs):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        finally:
            await model.close()

    with capture_logs() as logs:
        asyncio.run(told())
    assert "may not enter by this port" in logs[0]["error"]


def heard_soon(peer: Raw) -> bytes | None:
    return peer.socket.recv_multipart()[0] if peer.socket.poll(1500) else None


def test_a_trainer_lists_backends_and_an_operator_changes_them(site: Keyed) -> None:
    with site.client("t") as client:
        names = {backend.name for backend in client.backends()}
        assert names >= {"near-0", "far-0"}
        with pytest.raises(NodeRefused, match="others need an operator's"):
            client.drain_backend("near-0")
        client.publish(1, timeout_s=PATIENCE_S)
    with site.client("operator") as client:
        client.drain_backend("near-0")
        talk(site)
        client.drain_backend("near-0", undo=True)


def test_a_revoked_hosts_backend_is_let_go(site: Keyed) -> None:
    site.site.until(lambda: len(open_backends(site)) == 2, PATIENCE_S)
    site.keys.revoke("there")
    site.site.until(lambda: "key of its host was revoked" in site.site.log("router"), PATIENCE_S)
