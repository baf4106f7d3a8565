"""The HTTP side of a vLLM server, played by a test, for what a real one seldom does.

    with fake_vllm() as server:
        server.generate = refuse(503)
        server.is_up = False          # connections are cut from now on

Its completions are constant; nothing of a model is in it.
"""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from nodes.backends.vllm.server import HOST, free_port

Answer = Callable[[dict[str, Any]], tuple[int, Any]]
IDS = [5, 6, 7]


def completion(logprob: float = 0.0) -> Answer:
    """Answer with three tokens of this log-probability."""

    def answer(_asked: dict[str, Any]) -> tuple[int, Any]:
        content = [{"token_id": each, "logprob": logprob} for each in IDS]
        choice = {"token_ids": IDS, "logprobs": {"content": content}, "finish_reason": "length"}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 4}}

    return answer


def refuse(status: int, message: str = "no") -> Answer:
    """Answer with a failure."""
    return lambda _asked: (status, {"error": {"message": message}})


class FakeVllm:
    """What the server does at this moment; a test changes it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.generate: Answer = completion()
        self.is_up = True
        self.health = 200
        self.is_paused = False
        self.api_key = ""

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        if not self.is_up:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        is_guarded = request.path.startswith(("/v1", "/inference"))
        if (
            self.api_key
            and is_guarded
            and request.headers.get("Authorization") != (f"Bearer {self.api_key}")
        ):
            return web.json_response({"error": "Unauthorized"}, status=401)
        if request.path == "/inference/v1/generate":
            status, content = self.generate(json.loads(body))
            return web.json_response(content, status=status)
        known: dict[str, Any] = {
            "/v1/models": {"data": [{"id": "fake", "max_model_len": 100}]},
            "/version": {"version": "0.0.0"},
            "/weight_info": {"weight_version": "default"},
            "/metrics": {},
            "/is_paused": {"is_paused": self.is_paused},
            "/resume": {},
        }
        if request.path == "/resume":
            self.is_paused = False
        if request.path == "/health":
            return web.Response(status=self.health)
        return web.json_response(known[request.path])


@contextmanager
def fake_vllm() -> Iterator[FakeVllm]:
    """Serve from a thread of its own."""
    server, loop = FakeVllm(), asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, HOST, server.port).start()
        ready.set()
        await stop.wait()
        await runner.cleanup()

    run: Awaitable[None] = main()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run))
    thread.start()
    try:
        assert ready.wait(30), "the fake server did not start"
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
