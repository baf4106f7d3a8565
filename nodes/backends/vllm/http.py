"""One vLLM server over HTTP.

Job: the calls that a backend makes of its server, each with a deadline.
Does not know: the router, tickets, or which process serves.
Invariants: `Unreachable` means that nobody serves at the URL; `HttpFailed` that somebody answered
otherwise than hoped; `NotServing` that the server is no use as it is, and what to change. A
connection is never reused after it was idle for KEEP_S: the server closes its own after 5 s. The
API key is in the headers of requests and nowhere else.
"""

import asyncio
from urllib.parse import urlsplit

import aiohttp
import orjson

from engine.errors import NodeFailed

from ...inference.messages import PauseMode
from .wire import (
    BadReply,
    Failure,
    Reply,
    Served,
    Versions,
    check_probe,
    engine_id,
    read_failure,
    read_figures,
    read_reply,
    read_served,
    read_version,
)

KEEP_S = 2.0
ASK_S = 10.0  # for what a server answers at once
UPDATE_S = 600.0  # to load weights, or for requests to end
PROBE_S = 120.0  # a first completion may compile
MODELS = "/v1/models"
GENERATE = "/inference/v1/generate"
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
PROBE_IDS = (1, 2, 3, 4)
PROBE_TOKENS = 4
NO_LIMIT = aiohttp.ClientTimeout(total=None)  # asyncio.timeout holds for the whole call


class Unreachable(Exception):  # noqa: N818 - reads as the state that it reports
    """Nobody serves there, or the connection was cut."""


class HttpFailed(Exception):  # noqa: N818 - reads as the event that it reports
    """A server's answer is not 200; `failure` is what that means to a request."""

    def __init__(self, failure: Failure, status: int) -> None:
        self.failure = failure
        self.status = status
        super().__init__(failure.message)


class NotServing(NodeFailed):
    """The server cannot be used as it is; the message says what to change."""


class VllmHttp:
    """Calls to one server; `api_key` is sent with each, unless it is empty."""

    def __init__(self, url: str, request_s: float, api_key: str = "") -> None:
        self._url = url.rstrip("/")
        self.is_local = urlsplit(url).hostname in LOCAL
        self._request_s = request_s
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        )

    async def close(self) -> None:
        """Close every connection; the server aborts what was asked on them."""
        await self._session.close()

    async def generate(self, body: bytes) -> bytes:
        """Ask for one completion and return the answer's body.

        Raises: Unreachable, HttpFailed, TimeoutError.
        """
        return await self._post(GENERATE, body, self._request_s)

    async def abort(self, request_id: str) -> None:
        """Stop a request; its answer comes as that of the request.

        Raises: Unreachable, HttpFailed, TimeoutError.
        """
        body = orjson.dumps({"request_ids": [engine_id(request_id)]})
        await self._post("/inference/v1/abort_requests", body, ASK_S)

    async def health(self) -> None:
        """Return if the server answers and its engine lives.

        Raises: Unreachable, HttpFailed, TimeoutError.
        """
        await self._get("/health")

    async def figures(self) -> dict[str, float]:
        """Return the server's own counts.

        Raises: Unreachable, HttpFailed, TimeoutError.
        """
        return read_figures((await self._get("/metrics")).decode(errors="replace"))

    async def served(self) -> Served:
        """Return the first model served, and its context.

        Raises: NotServing naming what to change; Unreachable, TimeoutError, BadReply.
        """
        try:
            return read_served(await self._get(MODELS))
        except HttpFailed as wrong:
            raise NotServing(f"{self._url}{MODELS}: {_advice(wrong)}") from None

    async def software(self) -> str:
        """Return the version of vLLM.

        Raises: Unreachable, HttpFailed, TimeoutError.
        """
        return str(orjson.loads(await self._get("/version")).get("version", "unknown"))

    async def policy_version(self) -> int:
        """Return the version of the weights; 0 if the server keeps none.

        Raises: Unreachable, TimeoutError, BadReply.
        """
        try:
            found = orjson.loads(await self._get("/weight_info"))
        except HttpFailed:
            return 0
        return read_version(str(found.get("weight_version", 0)))

    async def probe(self, served: Served) -> Reply:
        """Ask for a few tokens and return them, after checking that they are what is promised.

        Raises: NotServing naming what to change; Unreachable, TimeoutError.
        """
        sampling = {"max_tokens": PROBE_TOKENS, "top_k": 1, "logprobs": 0, "detokenize": False}
        asked = {"token_ids": PROBE_IDS, "sampling_params": sampling, "model": served.model}
        try:
            answer = await self._post(GENERATE, orjson.dumps(asked), PROBE_S)
            reply = read_reply(answer, Versions(0, 0))
            check_probe(reply)
        except HttpFailed as wrong:
            raise NotServing(f"{self._url}{GENERATE}: {_advice(wrong)}") from None
        except BadReply as wrong:
            raise NotServing(f"{self._url}{GENERATE}: {wrong}") from None
        return reply

    async def is_paused(self) -> bool:
        """Return whether the server was left paused. Raises: Unreachable, TimeoutError."""
        try:
            found = orjson.loads(await self._get("/is_paused"))
        except HttpFailed:
            return False  # without dev mode there is no pause
        return bool(found.get("is_paused"))

    async def pause(self, mode: PauseMode) -> None:
        """Stop sampling. Raises: Unreachable, HttpFailed, TimeoutError."""
        await self._post(f"/pause?mode={mode}", b"{}", UPDATE_S)

    async def resume(self) -> None:
        """Sample again. Raises: Unreachable, HttpFailed, TimeoutError."""
        await self._post("/resume", b"{}", ASK_S)

    async def reload(self, source: str) -> None:
        """Load weights in place. Raises: Unreachable, HttpFailed, TimeoutError."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": source}}
        await self._post("/collective_rpc", orjson.dumps(body), UPDATE_S)

    async def set_version(self, version: int) -> None:
        """Name the weights that the server holds. Raises: as `resume`."""
        body = orjson.dumps({"new_version": str(version)})
        await self._post("/update_weight_version", body, ASK_S)

    async def forget_prefixes(self) -> bool:
        """Empty the prefix cache; False if requests hold some of it. Raises: as `resume`."""
        answer = await self._post("/reset_prefix_cache", b"{}", ASK_S)
        return bool(orjson.loads(answer).get("success", True))

    async def _get(self, path: str) -> bytes:
        return await self._ask("GET", path, None, ASK_S)

    async def _post(self, path: str, body: bytes, limit_s: float) -> bytes:
        return await self._ask("POST", path, body, limit_s)

    async def _ask(self, method: str, path: str, body: bytes | None, limit_s: float) -> bytes:
        headers = {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(limit_s),
                self._session.request(
                    method, self._url + path, data=body, headers=headers, timeout=NO_LIMIT
                ) as answer,
            ):
                content = await answer.read()
        except TimeoutError:
            raise TimeoutError(f"{method} {path}: no answer within {limit_s:g} s") from None
        except (aiohttp.ClientError, ConnectionError) as wrong:
            raise Unreachable(f"{method} {path}: {type(wrong).__name__}: {wrong}") from None
        if answer.status != 200:
            raise HttpFailed(read_failure(answer.status, content), answer.status)
        return content


def _advice(wrong: HttpFailed) -> str:
    match wrong.status:
        case 403:
            return f"{wrong}; start the server with --enable-scale-out"
        case 404:
            return f"{wrong}; this vLLM is too old, or the URL is not that of a vLLM server"
        case 401:
            return f"{wrong}; name the variable that holds the server's API key in api_key_env"
    return str(wrong)
