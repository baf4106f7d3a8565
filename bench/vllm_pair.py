"""Two real vLLM servers on this machine's CPU under the router's own placement.

The servers are vLLM's, with a model of any size and a small cache; placement runs in this process
and HTTP goes straight to the servers, so that the policy is all that differs. Sessions are those of
`bench.sessions`, shorter. Policies alternate on the same servers, each time with new sessions.

Job: start the servers, drive sessions through them for a while, count, and end them.
Invariants: servers listen on loopback only and end with the bench. A failed request ends the bench.
"""

import asyncio
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

from bench.sessions import Length, Session, Shape, sessions
from bench.simulated_fleet import RULES
from nodes.inference import events
from nodes.inference.placement import Placement
from nodes.inference.policies import named

SHAPE = Shape(
    group_size=4,
    system_tokens=300,
    task=Length(100, 300),
    added=Length(100, 500),
    answer=Length(12, 40),
    tool_s=Length(0.05, 0.5),
    turns_scale=0.5,
    context_tokens=4000,
)
SERVERS, CAPACITY, LOAD = 2, 32, 16
BLOCK_TOKENS, CACHE_TOKENS, CONTEXT_TOKENS = 32, 13_312, 4096
READY_S, ANSWER_S, STOP_S = 300.0, 120.0, 30.0
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class Traffic:
    """Sessions under one policy for a while; `rate` and `hit_rate` are of the window."""

    def __init__(
        self, policy: str, urls: list[str], model: str, seed: int, window_s: float
    ) -> None:
        self._placement = Placement(named(policy), RULES, "bench")
        for url in urls:
            self._placement.handle(events.BackendUp(url, url, CAPACITY), 0.0)
            self._placement.handle(events.BackendOpened(url), 0.0)
        self._model = model
        self._sessions = sessions(SHAPE, seed)
        self._seed = seed
        self._opens_at = time.monotonic() + window_s / 4
        self._window_s = window_s
        self._rollouts = 0.0
        self._prompt_tokens = self._cached_tokens = 0

    @property
    def rate(self) -> float:
        """Return rollouts/s; a turn counts as its share of its rollout."""
        return self._rollouts / self._window_s

    @property
    def hit_rate(self) -> float:
        """Return the share of prompt tokens that a cache held."""
        return self._cached_tokens / self._prompt_tokens

    async def run(self) -> None:
        """Keep `LOAD` sessions open until the window closes."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            talkers = [asyncio.create_task(self._talk(http)) for _ in range(LOAD)]
            await asyncio.gather(*talkers)

    async def _talk(self, http: aiohttp.ClientSession) -> None:
        while not self._is_over():
            session = next(self._sessions)
            prompt = _opening(session, self._seed)
            chance = random.Random(self._seed * 1_000_003 + session.number)
            for place, turn in enumerate(session.turns):
                prompt += _tokens(chance, turn.added_tokens)
                name = str(session.number)
                prompt += await self._ask(http, name, place, prompt, turn.answer_tokens)
                self._rollouts += self._counts() / len(session.turns)
                if self._is_over():
                    return
                await asyncio.sleep(turn.tool_s)
            self._placement.handle(events.Released(name), time.monotonic())

    async def _ask(
        self, http: aiohttp.ClientSession, session: str, place: int, prompt: list[int], most: int
    ) -> list[int]:
        asked = events.Asked("run", f"{session}.{place}", session)
        [dispatch] = self._placement.handle(asked, time.monotonic())
        assert isinstance(dispatch, events.Dispatch)
        body = {
            "model": self._model,
            "token_ids": prompt,
            "cache_salt": str(self._seed),
            "sampling_params": {"max_tokens": most, "ignore_eos": True, "detokenize": False},
        }
        url = f"{dispatch.backend}/inference/v1/generate"
        async with http.post(url, json=body) as response:
            response.raise_for_status()
            reply = await response.json()
        answered = events.Answered(dispatch.backend, dispatch.ticket)
        self._placement.handle(answered, time.monotonic())
        if self._counts():
            self._prompt_tokens += len(prompt)
            details = reply["usage"]["prompt_tokens_details"] or {}
            self._cached_tokens += details.get("cached_tokens") or 0
        token_ids: list[int] = reply["choices"][0]["token_ids"]
        return token_ids

    def _counts(self) -> bool:
        return self._opens_at <= time.monotonic() < self._opens_at + self._window_s

    def _is_over(self) -> bool:
        return time.monotonic() >= self._opens_at + self._window_s


def compare(
    python: str, model: str, window_s: float, rounds: int, policies: tuple[str, str]
) -> dict[str, list[tuple[float, float]]]:
    """Return (rollouts/s, hit rate) of each policy in each round, in alternation.

    Raises: RuntimeError if a server does not come up; aiohttp.ClientError if one fails a request.
    """
    found: dict[str, list[tuple[float, float]]] = {policy: [] for policy in policies}
    with _servers(python, model) as urls:
        for number in range(rounds):
            for policy in policies[:: -1 if number % 2 else 1]:
                traffic = Traffic(policy, urls, model, 1 + number, window_s)
                asyncio.run(traffic.run())
                found[policy].append((traffic.rate, traffic.hit_rate))
    return found


@contextmanager
def _servers(python: str, model: str) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory() as directory:
        ports = [_free_port() for _ in range(SERVERS)]
        logs = [Path(directory) / f"{port}.log" for port in ports]
        started = [_start(python, model, port, log) for port, log in zip(ports, logs, strict=True)]
        try:
            urls = [f"http://127.0.0.1:{port}" for port in ports]
            for url, process, log in zip(urls, started, logs, strict=True):
                if not asyncio.run(_ready(url, process)):
                    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise RuntimeError(f"vLLM was not ready within {READY_S:g} s: {tail}")
            yield urls
        finally:
            for process in started:
                _stop(process)


def _start(python: str, model: str, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", model),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--enable-scale-out", "--enable-prompt-tokens-details"),
        *("--block-size", str(BLOCK_TOKENS), "--max-model-len", str(CONTEXT_TOKENS)),
        *("--num-gpu-blocks-override", str(CACHE_TOKENS // BLOCK_TOKENS)),
        *("--max-num-seqs", str(CAPACITY)),
    ]
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            env=os.environ | ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


async def _ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    give_up_at = time.monotonic() + READY_S
    async with aiohttp.ClientSession() as http:
        while process.poll() is None and time.monotonic() < give_up_at:
            try:
                async with http.get(f"{url}/health") as response:
                    if response.status == 200:
                        return True
            except aiohttp.ClientError:
                await asyncio.sleep(0.5)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and the engine process that it started, which are a session of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _opening(session: Session, seed: int) -> list[int]:
    system = _tokens(random.Random(seed), session.system_tokens)
    task = _tokens(random.Random(seed * 1_000_003 - session.group), session.task_tokens)
    return system + task


def _tokens(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(16, 1024) for _ in range(count)]
