"""Nonsense on every bound socket, while work goes on."""

import random
import socket
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import zmq

from engine import load

from . import noise, oracle
from .conftest import Start
from .scene import Scene, until

pytestmark = pytest.mark.chaos

ROLLOUTS = 200
MESSAGE_BYTES = 1024 * 1024
LIMITS = {"message_bytes": MESSAGE_BYTES}
STAGES = [{"name": "run", "slots": 8}, {"name": "eval"}]
ANSWERS = {b"problem", b"refused", b"hello_again", b"welcome", b"pong", b"cancelled", b"replaced"}


def test_garbage_is_counted_and_work_goes_on(start: Start) -> None:
    scene = start(stages=STAGES, limits=LIMITS, router={})
    broker = scene.node("broker")
    trainer = scene.start_trainer(ROLLOUTS, payload={"run_s": 0.05})
    until(scene.progress, "the first result")
    heard = speak_nonsense(scene)
    for endpoint in endpoints(scene):
        noise.shout(endpoint)
    scene.finish(trainer)
    report = scene.status()
    assert scene.node("broker") == broker, "the broker went on"
    for name in ("front", "control", "results"):
        assert report["loop"][f"refused_on_{name}"] > 100, report["loop"]
    assert set(heard) <= ANSWERS, "what was meant for others stays with them"
    verdict = oracle.judge(scene.logs)
    assert not verdict.problems, verdict
    assert verdict.counts["completed"] == ROLLOUTS, verdict


def test_noise_on_tcp_is_no_harm_either(start: Start) -> None:
    port = free_ports()
    scene = start(
        stages=STAGES,
        limits=LIMITS,
        insecure=True,
        hosts={"local": {"address": "127.0.0.1"}},
        broker={"port": port},
    )
    trainer = scene.start_trainer(ROLLOUTS, payload={"run_s": 0.05})
    until(scene.progress, "the first result")
    for offset in range(4):
        noise.shout(f"tcp://127.0.0.1:{port + offset}")
    heard = speak_nonsense(scene)
    scene.finish(trainer)
    assert set(heard) <= ANSWERS
    verdict = oracle.judge(scene.logs)
    assert not verdict.problems, verdict
    assert verdict.counts["completed"] == ROLLOUTS, verdict


def test_a_worker_id_never_becomes_a_path_of_somebody_elses_choice(start: Start) -> None:
    scene = start(stages=STAGES)
    broker = scene.node("broker")
    for name in ("../../escape-000000000000", "x" * 200, "run-0-" + "f" * 100, "run-0-"):
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.setsockopt(zmq.IDENTITY, name.encode())
            stranger.connect(endpoint(scene, "control"))
            for message in noise.strangers(name):
                stranger.send_multipart(message)
            assert stranger.poll(5000), "an answer"
    with scene.client() as client:
        client.submit(scene.task("t"), 4)
        assert {rollout.outcome for rollout in client.rollouts()} == {"completed"}
    assert scene.node("broker") == broker
    assert not list(scene.directory.rglob("*escape*"))


def test_noise_on_a_workers_pipe_is_given_no_work(start: Start) -> None:
    """To ZMTP 1.0 two bytes are a peer, and a PUSH socket shares its work among its peers."""
    scene = start(stages=STAGES)
    with ExitStack() as stack:
        peers = [stack.enter_context(closing(noise.connected(file))) for file in endpoints(scene)]
        for peer in peers:
            peer.sendall(b"\x01\x00")
        with scene.client() as client:
            client.submit(scene.task("t"), 16)
            found = [(rollout.outcome, rollout.failures) for rollout in client.rollouts()]
        heard = [noise.read_all(peer) for peer in peers]
    assert found == [("completed", ())] * 16
    assert not [text for text in heard if b"rollmq/1" in text]


def speak_nonsense(scene: Scene) -> Counter[bytes]:
    """Send every kind of nonsense to every edge; return the kinds of the answers."""
    heard: Counter[bytes] = Counter()
    edges = {"front": zmq.DEALER, "control": zmq.DEALER, "results": zmq.PUSH, "events": zmq.XSUB}
    with zmq.Context() as context:
        context.linger = 1000
        for edge, kind in edges.items():
            with context.socket(kind) as peer:
                peer.setsockopt(zmq.SNDTIMEO, 5000)
                peer.connect(endpoint(scene, edge))
                speak(peer, edge, heard)
            with context.socket(kind) as peer:
                peer.connect(endpoint(scene, edge))
                peer.send_multipart([b"rollmq/1 submit", b"x" * (2 * MESSAGE_BYTES)])
    return heard


def speak(peer: zmq.Socket[bytes], edge: str, heard: Counter[bytes]) -> None:
    extra = {"front": noise.trainers_words(), "control": noise.strangers("run-0-0")}
    nonsense = list(noise.messages(random.Random(3), MESSAGE_BYTES))
    for message in [*nonsense, *extra.get(edge, [])]:
        peer.send_multipart(message)
        listen(peer, heard, 0)
    listen(peer, heard, 300)


def listen(peer: zmq.Socket[bytes], heard: Counter[bytes], wait_ms: int) -> None:
    """Take the answers that come, from those that give answers."""
    while peer.getsockopt(zmq.TYPE) == zmq.DEALER and peer.poll(wait_ms):
        heard[peer.recv_multipart()[0].removeprefix(noise.PREFIX)] += 1


def endpoint(scene: Scene, edge: str) -> str:
    return load(scene.topology).endpoint(edge)


def endpoints(scene: Scene) -> list[str]:
    """Return every socket file of the run: the edges, and the workers' pipes."""
    directory = Path(load(scene.topology).socket_dir)
    found = [f"ipc://{file}" for file in directory.iterdir() if file.is_socket()]
    assert any("/w-" in name for name in found)
    return found


def free_ports() -> int:
    """Return the first of four free ports in a row, as far as one can know."""
    chance = random.Random()
    while True:
        first = chance.randrange(20_000, 30_000)
        try:
            for port in range(first, first + 4):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
