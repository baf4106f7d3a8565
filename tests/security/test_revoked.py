"""Keys are revoked and rotated while everything runs."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from engine import AccessRefused, Client, Task
from engine.messages import Hello, Problem, Welcome
from engine.security import OwnKey

from .kit import PATIENCE_S, Keyed, keyed, with_keys_of

SLOW_S = 60.0

KINDS = {
    "echo": """\
import asyncio

from nodes.tasks import Output


async def init(context):
    return Output()


async def run(context):
    await asyncio.sleep(context.task.payload.get("s", 0.0))
    return Output()


async def eval(context):
    return Output(reward=1.0)
"""
}


@pytest.fixture
def site(short_path: Path) -> Iterator[Keyed]:
    with keyed(short_path, kinds=KINDS) as site:
        yield site


@contextmanager
def another_trainer(site: Keyed, rollouts: int = 60) -> Iterator[Callable[[], list[str]]]:
    """Run a trainer beside the test; what is given waits for its end and returns its outcomes."""
    outcomes: list[str] = []

    def work() -> None:
        with site.client("u", patience_s=PATIENCE_S) as client:
            for number in range(rollouts // 4):
                client.submit(Task(f"u-{number}", "kinds.echo", {"s": 0.3}), 4)
            ended = [(rollout.outcome, rollout.failures) for rollout in client.rollouts()]
            outcomes.extend(one if one == "completed" else f"{one}: {why}" for one, why in ended)

    thread = threading.Thread(target=work, name="another trainer")
    thread.start()

    def ended() -> list[str]:
        deadline = time.monotonic() + 4 * PATIENCE_S
        while thread.is_alive() and time.monotonic() < deadline:
            site.site.supervisor.watch()
            thread.join(0.1)
        assert not thread.is_alive()
        return outcomes

    try:
        yield ended
    finally:
        ended()


def workers_of(site: Keyed, host: str) -> list[str]:
    found = site.status()["workers"]
    return [each["worker_id"] for each in found if each["host"] == host and not each["silent"]]


def keep_busy(client: Client) -> None:
    """Submit one rollout more for each that ends, for as long as it goes."""
    for _ in client.rollouts():
        client.submit(Task("t", "kinds.echo", {"s": 0.2}), 1)


def old_key(site: Keyed, directory: Path, name: str) -> OwnKey:
    """Return a client's key as it is now, whatever becomes of its file."""
    copy = directory / "before"
    shutil.copytree(site.keys.directory, copy)
    key = site.keys.own(name, "trainer")
    return OwnKey(key.peer, copy / f"{name}.secret", copy)


def test_a_revoked_trainer_is_let_go_and_told_and_others_go_on(site: Keyed, tmp_path: Path) -> None:
    key = old_key(site, tmp_path, "t")
    with another_trainer(site) as ended, site.client("t") as client:
        with site.peer("events", key, zmq.SUB) as listener, site.peer("front", key) as silent:
            listener.socket.setsockopt(zmq.SUBSCRIBE, b"")
            assert listener.socket.poll(1000 * SLOW_S)
            silent.say(Hello("t-silent", 4))
            assert isinstance(silent.hear(), Welcome)
            client.submit(Task("t", "kinds.echo", {"s": 0.2}), 4)
            site.keys.revoke("t")
            with pytest.raises(AccessRefused):
                keep_busy(client)
            told = silent.hear()
            assert isinstance(told, Problem)
            assert (told.code, told.message) == ("access", "the key of this connection is revoked")
            silent.say(Hello("t-silent", 4))
            assert isinstance(silent.hear(), Problem)
            site.site.until(lambda: "events: unknown key" in site.refused(), SLOW_S)
            while listener.socket.poll(0):
                listener.socket.recv_multipart()
            assert not listener.socket.poll(1500)  # several heartbeats' worth of hints
        assert ended() == ["completed"] * 60
    file = with_keys_of(site, tmp_path, tmp_path / "before")  # which still have t's secret
    with pytest.raises(AccessRefused, match="not on the allow-list"):
        Client(file, "t", key="t", connect_s=SLOW_S)


def test_a_revoked_host_loses_its_work_and_comes_back_with_a_new_key(site: Keyed) -> None:
    there = workers_of(site, "there")
    assert there
    with another_trainer(site) as ended:
        site.keys.revoke("there")
        site.site.until(lambda: not workers_of(site, "there"), SLOW_S)
        assert ended() == ["completed"] * 60
    site.site.until(
        lambda: (
            "access" in site.site.log("run-0.there") or "revoked" in site.site.log("run-0.there")
        )
    )
    site.site.until(lambda: "events: unknown key" in site.refused(), SLOW_S)
    site.keys.add("there", "host")
    site.site.until(lambda: workers_of(site, "there"), SLOW_S)
    assert workers_of(site, "there") == there  # the same process, which never ended
    site.works(8, "u")


def test_keys_are_rotated_while_everything_runs(site: Keyed) -> None:
    before = {host: workers_of(site, host) for host in ("here", "there")}
    pids = site.site.supervisor.pids
    with another_trainer(site) as ended:
        for name in ("here", "there", "u"):
            site.keys.rotate(name)
        with site.client("t") as client:
            client.submit(Task("t", "kinds.echo", {}), 8)
            assert [r.outcome for r in client.rollouts()] == ["completed"] * 8
        assert ended() == ["completed"] * 60
    for name in ("here", "there", "u"):
        assert len(site.keys.revoke(name, old=True)) == 1
    site.works(8, "u")
    with another_trainer(site) as ended:
        for name in ("here", "there", "u"):
            site.keys.rotate(name)
            assert len(site.keys.revoke(name, old=True)) == 1
        assert ended() == ["completed"] * 60
    for name in ("here", "there", "u"):
        site.keys.rotate(name)
    site.works(8, "u")
    assert {host: workers_of(site, host) for host in ("here", "there")} == before
    assert site.site.supervisor.pids == pids


def test_a_list_that_cannot_be_read_changes_nothing(site: Keyed) -> None:
    file = site.keys.directory / "allowed.json"
    good = file.read_bytes()
    with site.client() as client:
        file.write_text("{")
        site.site.until(lambda: client.status()["security"]["unreadable"])
        client.submit(Task("t", "kinds.echo", {}), 4)
        assert [rollout.outcome for rollout in client.rollouts()] == ["completed"] * 4
        file.write_bytes(good)
        site.site.until(lambda: not client.status()["security"]["unreadable"])
    site.works(4)
