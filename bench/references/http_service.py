"""What both FastAPI references share: the queues, the server's process and the client.

The client is aiohttp on uvloop: httpx was the bottleneck (131 rollouts/s where aiohttp saw 507),
and a hand-written protocol on httptools was no faster. `in_flight` coroutines each keep one request
under way.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import aiohttp
import uvicorn
import uvloop
from fastapi import FastAPI

from bench.measure import Meter, ReferenceResult
from bench.processes import SPAWN, children
from bench.workload import Lists, Trajectory, check

WORKERS = 64  # coroutines a stage
START_S = 30.0
ANSWER_S = 30.0
Stage = Callable[[Any], Awaitable[Any]]
Decode = Callable[[bytes], tuple[Trajectory | Lists, float]]


class Pipeline:
    """Asyncio queues in a row, each with worker tasks that apply one stage."""

    def __init__(self, stages: list[Stage]) -> None:
        self._stages = stages
        self._queues: list[asyncio.Queue[tuple[Any, asyncio.Future[Any]]]] = []

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Keep the workers alive as long as the service; FastAPI calls this."""
        self._queues = [asyncio.Queue() for _ in self._stages]
        places = range(len(self._stages))
        tasks = [asyncio.create_task(self._work(n)) for n in places for _ in range(WORKERS)]
        yield
        for task in tasks:
            task.cancel()

    async def rollout(self, item: Any) -> Any:
        """Send item through every stage; return what the last one made of it."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queues[0].put_nowait((item, done))
        return await done

    async def _work(self, place: int) -> None:
        source, stage = self._queues[place], self._stages[place]
        following = self._queues[place + 1] if place + 1 < len(self._queues) else None
        while True:
            item, done = await source.get()
            try:
                item = await stage(item)
            except Exception as error:  # noqa: BLE001  # a stage's failure belongs to its rollout
                done.set_exception(error)
                continue
            if following:
                following.put_nowait((item, done))
            else:
                done.set_result(item)


def measure(
    name: str,
    make_app: Callable[[int], FastAPI],
    decode: Decode,
    seconds: float,
    in_flight: int,
    tokens: int,
) -> ReferenceResult:
    """Start the service in its own process and measure it as its client.

    Raises:
        CandidateError: the service did not start, died or answered with an error.
        WrongRolloutError: a rollout arrived that is not the one asked for.

    """
    ours, theirs = SPAWN.Pipe()
    with children(name, {"service": (_serve, (make_app, tokens, theirs))}) as held:
        theirs.close()
        if not ours.poll(START_S):
            raise held.failure(f"the service did not start within {START_S} s")
        try:
            url = f"http://127.0.0.1:{ours.recv()}/rollouts/"
            return uvloop.run(_client(Meter(name, seconds), url, decode, in_flight, tokens))
        except (EOFError, aiohttp.ClientError, TimeoutError) as error:
            raise held.failure(f"{type(error).__name__}: {error}") from error


def _serve(make_app: Callable[[int], FastAPI], tokens: int, started: Connection) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    config = uvicorn.Config(
        make_app(tokens), loop="uvloop", http="httptools", log_level="warning", access_log=False
    )
    started.send(listener.getsockname()[1])
    uvicorn.Server(config).run(sockets=[listener])


async def _client(
    meter: Meter, url: str, decode: Decode, in_flight: int, tokens: int
) -> ReferenceResult:
    task_ids = count()

    async def keep_one_under_way() -> None:
        started = perf_counter()
        while True:
            task_id = next(task_ids)
            async with session.post(f"{url}{task_id}") as response:
                response.raise_for_status()
                trajectory, reward = decode(await response.read())
            check(task_id, trajectory, reward, tokens)
            if not meter.finished(started):
                return
            started = perf_counter()

    connector = aiohttp.TCPConnector(limit=in_flight)
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(keep_one_under_way() for _ in range(in_flight)))
    return meter.result()
