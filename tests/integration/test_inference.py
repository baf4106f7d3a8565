"""The inference side as real processes over IPC: client, router and simulators."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from engine.errors import BoundaryError
from engine.messages import FROM_NODE, NodeHello
from engine.process import child_environment
from engine.sockets import Bounds, bind, drain, open_socket
from engine.topology import Topology, load
from engine.wire import Codec, encode
from nodes import tokens
from nodes.inference.client import RouterModel, connect
from nodes.inference.messages import TO_RUN_WORKER, GenerateFailed, Release
from nodes.tasks import Generation, Sampling

DEADLINE_S = 20.0
VOCABULARY = tokens.load()
PROMPT = VOCABULARY.opening([("user", "Calculate 12 + 30.")])
SAMPLING = Sampling(stop_token_ids=(VOCABULARY.end,))


class Site:
    """A topology in a directory, its processes, and the figures that they tell the broker."""

    def __init__(self, directory: Path, *, speed: float, count: int, connect_s: float) -> None:
        self.file = directory / "topology.yaml"
        backends = {"name": "sim", "kind": "simulator", "count": max(count, 1), "capacity": 8}
        settings = {
            "version": 1,
            "run_dir": "run",
            "timeouts": {"heartbeat_s": 0.4, "connect_s": connect_s, "drain_s": 5},
            "stages": [{"name": "run"}],
            "router": {},
            "backends": [{**backends, "options": {"speed": speed}}],
        }
        self.file.write_text(json.dumps(settings))
        self.topology: Topology = load(self.file)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.figures: dict[str, dict[str, float]] = {}
        self._context = zmq.Context()
        self._control = open_socket(self._context, zmq.ROUTER, Bounds())
        bind(self._control, self.topology.endpoint("control"))
        self.start("router")
        for index in range(count):
            self.start(f"sim-{index}")

    def start(self, name: str) -> None:
        module = "nodes.router" if name == "router" else "nodes.backends.simulator"
        command = [sys.executable, "-m", module, "--topology", str(self.file), "--name", name]
        self.processes[name] = subprocess.Popen(command, env=child_environment())

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait(DEADLINE_S)

    def terminate(self, name: str) -> int:
        self.processes[name].send_signal(signal.SIGTERM)
        return self.processes[name].wait(DEADLINE_S)

    async def until(self, node: str, holds: Callable[[dict[str, float]], bool]) -> None:
        """Wait until a node tells figures for which `holds`."""
        give_up_at = time.monotonic() + DEADLINE_S
        self.figures.pop(node, None)
        while node not in self.figures or not holds(self.figures[node]):
            assert time.monotonic() < give_up_at, self.figures
            for _, *frames in drain(self._control, 100):
                hello, _ = Codec[Any](FROM_NODE).decode(frames)
                assert isinstance(hello, NodeHello)
                self.figures[hello.node] = hello.figures
            await asyncio.sleep(0.01)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(DEADLINE_S)
        self._control.close()
        self._context.term()


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    settings = {"speed": 20.0, "count": 2, "connect_s": 10.0, **getattr(request, "param", {})}
    site = Site(tmp_path, **settings)
    yield site
    site.close()


@asynccontextmanager
async def model_of(site: Site, deadline_s: float = DEADLINE_S) -> AsyncIterator[RouterModel]:
    model = connect(site.topology, "run-0", deadline_s)
    try:
        yield model
    finally:
        await model.close()


def with_model(site: Site, scenario: Callable[[RouterModel], Awaitable[None]]) -> None:
    async def main() -> None:
        async with model_of(site) as model:
            await site.until("router", lambda figures: figures["backends"] >= 1)
            await scenario(model)

    asyncio.run(main())


def check(generation: Generation) -> None:
    assert generation.finish_reason == "stop"
    assert generation.token_ids[-1] == VOCABULARY.end
    assert len(generation.token_ids) == len(generation.logprobs)
    assert generation.policy_spans.tolist() == [[0, len(generation.token_ids), 0]]
    assert "<answer>" in VOCABULARY.decode(generation.token_ids)


def test_the_second_turn_of_every_session_finds_its_first_in_the_cache(site: Site) -> None:
    async def scenario(model: RouterModel) -> None:
        await site.until("router", lambda figures: figures["backends"] == 2)
        await asyncio.gather(*(session(model, f"s{number}") for number in range(12)))
        await site.until("router", lambda figures: figures["sessions"] == 0)
        assert site.figures["router"]["delivered"] == 24

    async def session(model: RouterModel, name: str) -> None:
        first = await model.generate(name, PROMPT, SAMPLING)
        check(first)
        asked = VOCABULARY.next_turn("user", "Check it.")
        prompt = np.concatenate([PROMPT, first.token_ids, asked])
        second = await model.generate(name, prompt, SAMPLING)
        check(second)
        assert second.cached_tokens > len(PROMPT)
        await model.release(name)

    with_model(site, scenario)


@pytest.mark.parametrize("site", [{"speed": 0.3}], indirect=True)
def test_requests_of_a_killed_backend_are_answered_by_another(site: Site) -> None:
    async def scenario(model: RouterModel) -> None:
        await site.until("router", lambda figures: figures["backends"] == 2)
        asked = [asyncio.create_task(model.generate(f"s{n}", PROMPT, SAMPLING)) for n in range(4)]
        await site.until("router", lambda figures: figures["running"] == 4)
        site.kill("sim-0")
        for generation in await asyncio.gather(*asked):
            check(generation)
        await site.until("router", lambda figures: figures["backends"] == 1)
        assert site.figures["router"]["retried"] == 2

    with_model(site, scenario)


@pytest.mark.parametrize("site", [{"speed": 0.3}], indirect=True)
def test_requests_are_answered_by_the_router_that_starts_after_a_killed_one(site: Site) -> None:
    async def scenario(model: RouterModel) -> None:
        asked = [asyncio.create_task(model.generate(f"s{n}", PROMPT, SAMPLING)) for n in range(4)]
        await site.until("router", lambda figures: figures["running"] == 4)
        site.kill("router")
        site.start("router")
        for generation in await asyncio.gather(*asked):
            check(generation)
        assert model.resent >= 4

    with_model(site, scenario)


@pytest.mark.parametrize("site", [{"speed": 0.3}], indirect=True)
def test_a_stopped_backend_is_replaced_and_has_to_say_hello_when_it_wakes(site: Site) -> None:
    async def scenario(model: RouterModel) -> None:
        await site.until("router", lambda figures: figures["backends"] == 2)
        asked = [asyncio.create_task(model.generate(f"s{n}", PROMPT, SAMPLING)) for n in range(2)]
        await site.until("router", lambda figures: figures["running"] == 2)
        site.processes["sim-0"].send_signal(signal.SIGSTOP)
        for generation in await asyncio.gather(*asked):
            check(generation)
        site.processes["sim-0"].send_signal(signal.SIGCONT)
        await site.until("router", lambda figures: figures["backends"] == 2)

    with_model(site, scenario)


def test_garbage_is_counted_and_harms_nobody(site: Site) -> None:
    async def scenario(model: RouterModel) -> None:
        context = zmq.Context()
        for edge in ("router", "router_backends"):
            socket = open_socket(context, zmq.DEALER, Bounds(), "vandal\xff")
            socket.connect(site.topology.endpoint(edge))
            kind, header = encode(Release(("s",)))
            for frames in ([b""], [b"\0" * 99], [kind, b"{"], [kind, b"{}"], [kind, header, b"x"]):
                socket.send_multipart(frames)
            await site.until("router", lambda figures: figures["garbage"] >= 5)
            socket.close(linger=1000)
        context.term()
        await site.until("router", lambda figures: figures["garbage"] == 10)
        check(await model.generate("s", PROMPT, SAMPLING))

    with_model(site, scenario)


@pytest.mark.parametrize(
    ("kind", "changes", "body"),
    [
        (b"rollmq/1 generate", {"more": 1}, b"[1]"),
        (b"rollmq/1 generate", {"max_tokens": -1}, b"[1]"),
        (b"rollmq/2 generate", {}, b"[1]"),
        (b"rollmq/1 generate", {}, b"[1]"),
        (b"rollmq/1 generate", {}, b"{"),
        (b"rollmq/1 generate", {"buffers": [{"name": "x", "dtype": "json", "shape": [0]}]}, b""),
        (b"rollmq/1 generate", {"buffers": [{"name": "x", "dtype": "int32", "shape": [0]}]}, b""),
        (
            b"rollmq/1 generate",
            {"buffers": [{"name": "x", "dtype": "int32", "shape": []}]},
            b"1234",
        ),
    ],
)
def test_a_request_that_cannot_be_understood_is_answered_as_invalid(
    site: Site, kind: bytes, changes: dict[str, Any], body: bytes
) -> None:
    buffer = {"name": "token_ids", "dtype": "json", "shape": [len(body)]}
    header = {"request_id": "r", "session": "s", "max_tokens": 1, "buffers": [buffer], **changes}

    async def scenario(model: RouterModel) -> None:
        context = zmq.Context()
        socket = open_socket(context, zmq.DEALER, Bounds(), "odd")
        socket.connect(site.topology.endpoint("router"))
        socket.send_multipart([kind, json.dumps(header).encode(), body])
        answer: Any = None
        while not isinstance(answer, GenerateFailed):  # the router also says that it is there
            assert socket.poll(int(DEADLINE_S * 1000))
            answer, _ = Codec[Any](TO_RUN_WORKER).decode(socket.recv_multipart())
        assert (answer.request_id, answer.code, answer.retry) == ("r", "invalid", False)
        socket.close()
        context.term()
        check(await model.generate("s", PROMPT, SAMPLING))

    with_model(site, scenario)


@pytest.mark.parametrize("site", [{"speed": 0.1}], indirect=True)
def test_a_cancelled_task_frees_its_place_on_the_backend(site: Site) -> None:
    async def scenario(model: RouterModel) -> None:
        asked = asyncio.create_task(model.generate("s", PROMPT, SAMPLING))
        await site.until("router", lambda figures: figures["running"] == 1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await site.until("router", lambda figures: figures["dropped"] == 1)
        for node in ("sim-0", "sim-1"):
            await site.until(node, lambda figures: figures["running"] == 0)
        assert site.figures["router"]["delivered"] == 0

    with_model(site, scenario)


@pytest.mark.parametrize("site", [{"speed": 0.1}], indirect=True)
def test_what_a_lost_worker_asked_for_is_stopped(site: Site) -> None:
    async def scenario(_model: RouterModel) -> None:
        async with model_of(site) as lost:
            asked = asyncio.create_task(lost.generate("s", PROMPT, SAMPLING))
            await site.until("router", lambda figures: figures["running"] == 1)
        with pytest.raises(asyncio.CancelledError):
            await asked
        await site.until("router", lambda figures: figures["sessions"] == 0)
        assert site.figures["router"]["dropped"] == 1

    with_model(site, scenario)


@pytest.mark.parametrize("site", [{"count": 0, "connect_s": 1.0}], indirect=True)
def test_a_request_without_a_backend_fails_and_names_the_wait(site: Site) -> None:
    async def main() -> None:
        async with model_of(site) as model:
            with pytest.raises(BoundaryError, match=r"no_backend: no backend for 1\.") as raised:
                await model.generate("s", PROMPT, SAMPLING)
            assert (raised.value.boundary, raised.value.retry) == ("backend", True)

    asyncio.run(main())


def test_a_request_without_a_router_fails_at_its_deadline(site: Site) -> None:
    async def main() -> None:
        site.kill("router")
        async with model_of(site, deadline_s=0.5) as model:
            with pytest.raises(BoundaryError, match=r"no completion within 0\.5 s; the router was"):
                await model.generate("s", PROMPT, SAMPLING)

    asyncio.run(main())


@pytest.mark.parametrize("site", [{"speed": 0.4}], indirect=True)
def test_asked_to_stop_a_node_finishes_what_is_open_and_exits_with_0(site: Site) -> None:
    async def scenario(model: RouterModel) -> None:
        asked = [asyncio.create_task(model.generate(f"s{n}", PROMPT, SAMPLING)) for n in range(4)]
        await site.until("router", lambda figures: figures["running"] == 4)
        assert await asyncio.to_thread(site.terminate, "router") == 0
        for generation in await asyncio.gather(*asked):
            check(generation)
        assert await asyncio.to_thread(site.terminate, "sim-0") == 0

    with_model(site, scenario)
