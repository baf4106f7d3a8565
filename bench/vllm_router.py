"""vllm-router (PyPI) as the reference of `bench.failover`: sessions over HTTP, one server killed.

The servers are small processes that answer `/v1/completions` after a fixed wait: what is compared
is what clients notice, not inference. Policy `sticky_least_loaded`, everything else as it comes. A
session is a value of `X-Session-ID`; its turns follow one another, and a turn that is answered with
another status than 200 is a client-visible error, after which the session goes on.

    python -m bench.vllm_router PORT        one such server
"""

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from engine.process import child_environment

HOST = "127.0.0.1"
ANSWER_S = 0.03
START_S = 30.0
WARMUP_S = 4.0
LIMIT = aiohttp.ClientTimeout(total=30)


@dataclass(slots=True)
class Sessions:
    """What the clients saw, by the monotonic clock."""

    ended: list[float] = field(default_factory=list)
    errors: int = 0
    killed_at: float = 0.0
    placed: list[tuple[float, int, int]] = field(default_factory=list)  # when, there, everywhere


def measure(router: str, servers: int, sessions: int, turns: int, seconds: float) -> Sessions:
    """Put vllm-router under the same load: a server killed and started again, one added.

    Raises: TimeoutError if something does not start; OSError if `router` is no program.
    """
    return asyncio.run(_Scene(router, servers, sessions, turns, seconds).run())


class _Scene:
    def __init__(
        self, router: str, servers: int, sessions: int, turns: int, seconds: float
    ) -> None:
        self._program = router
        self._ports = [_free_port() for _ in range(servers + 1)]
        self._sessions = sessions
        self._turns = turns
        self._seconds = seconds
        self._seen = Sessions()
        self._ids = itertools.count()
        self._going = True
        self._first: list[str] = []  # the server of each session's first turn

    async def run(self) -> Sessions:
        with ExitStack() as stack:
            processes = [stack.enter_context(_server(port)) for port in self._ports]
            port, metrics = _free_port(), _free_port()
            urls = [_url(each) for each in self._ports[:-1]]
            command = [self._program, "--host", HOST, "--port", str(port), "--log-level", "error"]
            command += ["--policy", "sticky_least_loaded", "--prometheus-port", str(metrics)]
            stack.enter_context(_process([*command, "--worker-urls", *urls]))
            async with aiohttp.ClientSession(timeout=LIMIT) as http:
                for each in (*map(_url, self._ports), _url(port)):
                    await _until_healthy(http, each)
                clients = [
                    asyncio.create_task(self._client(http, _url(port)))
                    for _ in range(self._sessions)
                ]
                await asyncio.sleep(WARMUP_S + self._seconds)
                self._seen.killed_at = time.monotonic()
                processes[0].kill()
                processes[0].wait()
                stack.enter_context(_server(self._ports[0]))
                await asyncio.sleep(self._seconds)
                await self._add(http, _url(port), _url(self._ports[-1]))
                self._going = False
                await asyncio.gather(*clients)
        return self._seen

    async def _add(self, http: aiohttp.ClientSession, router: str, server: str) -> None:
        async with http.post(f"{router}/add_worker", params={"url": server}) as answer:
            if answer.status != 200:
                raise RuntimeError(f"add_worker: {answer.status} {await answer.text()}")
        name = server.rpartition(":")[2]
        ends_at = time.monotonic() + self._seconds
        while time.monotonic() < ends_at:
            self._seen.placed.append((time.monotonic(), self._first.count(name), len(self._first)))
            await asyncio.sleep(0.2)

    async def _client(self, http: aiohttp.ClientSession, router: str) -> None:
        while self._going:
            headers = {"X-Session-ID": f"session-{next(self._ids)}"}
            for turn in range(self._turns):
                server = await self._turn(http, router, headers)
                if turn == 0 and server:
                    self._first.append(server)
            self._seen.ended.append(time.monotonic())

    async def _turn(self, http: aiohttp.ClientSession, router: str, headers: dict[str, str]) -> str:
        body = {"model": "m", "prompt": "p", "max_tokens": 1}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with http.post(f"{router}/v1/completions", json=body, headers=headers) as answer:
                if answer.status == 200:
                    return str((await answer.json())["id"])
        self._seen.errors += 1
        return ""


@contextmanager
def _process(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=child_environment())
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def _server(port: int) -> Iterator["subprocess.Popen[bytes]"]:
    with _process([sys.executable, "-m", "bench.vllm_router", str(port)]) as process:
        yield process


async def _until_healthy(http: aiohttp.ClientSession, url: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with http.get(f"{url}/health") as answer:
                if answer.status == 200:
                    return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url} was not healthy within {START_S:g} s")
        await asyncio.sleep(0.1)


def _url(port: int) -> str:
    return f"http://{HOST}:{port}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def serve(port: int) -> None:
    """Answer completions after a wait, until killed."""

    async def complete(_: web.Request) -> web.Response:
        await asyncio.sleep(ANSWER_S)
        choice = {"index": 0, "text": "a", "finish_reason": "stop", "logprobs": None}
        answer: dict[str, Any] = {"id": str(port), "object": "text_completion", "created": 0}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return web.json_response({**answer, "model": "m", "choices": [choice], "usage": usage})

    async def healthy(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}], "model_path": "m"})

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    get: Callable[..., Any] = app.router.add_get
    for path in ("/health", "/v1/models", "/get_model_info", "/get_server_info"):
        get(path, healthy)
    web.run_app(app, host=HOST, port=port, print=None)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
