"""A proxy in front of a vLLM server that keeps what the engine was asked and what it answered."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp
import orjson
from aiohttp import web

from nodes.backends.vllm.server import HOST, free_port

Turn = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(slots=True)
class Record:
    """Prompts and completions, as (token IDs, token IDs), in the order of the answers."""

    url: str
    turns: list[Turn] = field(default_factory=list)


@contextmanager
def recording(url: str) -> Iterator[Record]:
    """Serve a proxy of `url` from a thread of its own."""
    record = Record(f"http://{HOST}:{free_port()}")
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        async with aiohttp.ClientSession() as session:

            async def forward(request: web.Request) -> web.Response:
                body = await request.read()
                async with session.request(
                    request.method, url + request.path_qs, data=body, headers=request.headers
                ) as answer:
                    content = await answer.read()
                    if request.path.endswith("/generate") and answer.status == 200:
                        completion = orjson.loads(content)["choices"][0]["token_ids"]
                        asked = orjson.loads(body)["token_ids"]
                        record.turns.append((tuple(asked), tuple(completion)))
                    kind = answer.content_type
                    return web.Response(body=content, status=answer.status, content_type=kind)

            app = web.Application(client_max_size=64 * 2**20)
            app.router.add_route("*", "/{path:.*}", forward)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, HOST, int(record.url.rpartition(":")[2])).start()
            ready.set()
            await stop.wait()
            await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert ready.wait(30), "the proxy did not start"
        yield record
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
