"""What the token path costs, and what the router adds to a request.

    python -m bench.tokens --requests 1000 --rounds 3 --json

Measured in this process, at 8,192 tokens: each hop's encode and decode with its arrays (a prompt
out, a completion back, a whole trajectory to the broker), beyond one copy of the same bytes;
`hop_us` is the dearest of the three. And one turn of a conversation of that length: the completion
appended and read, the next prompt made.

Measured through real processes over IPC: the time from `generate` to its completion, one at a time,
4,096 prompt tokens and 256 sampled, by way of the router to a backend that answers at once, and
straight to one that speaks the same messages; in alternation. `router_p50_ms` and `router_p99_ms`
are the differences of the percentiles.

Not measured: a network, many requests at once, and a model.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench import null_backend
from bench.measure import json_line, percentile, table, write_results
from bench.processes import children
from engine.arrays import array_buffer, read_body, read_buffer
from engine.messages import RESULTS, StageResult
from engine.process import child_environment
from engine.sockets import Bounds
from engine.topology import load
from engine.trajectories import TRAJECTORY, Trajectory
from engine.wire import Codec, encode
from nodes import tokens
from nodes.agent import ChatmlTemplate, Conversation, Message
from nodes.inference.client import Patience, RouterModel
from nodes.inference.messages import FROM_RUN_WORKER, TO_RUN_WORKER, Generate
from nodes.tasks import Generation, Sampling

TOKENS = 8192
PROMPT, SAMPLED = 4096, 256
CALLS = 2000
STOP_S = 10.0
PATIENCE = Patience(heartbeat_s=1000.0, lost_after_s=10_000.0, deadline_s=60.0)
TEXT = """
version: 1
name: bench
run_dir: r
log_level: warning
stages: [{name: run}]
router: {}
backends: [{name: "null", kind: simulator, capacity: 1024}]
"""


def main() -> None:
    """Run the bench and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=1000, help="in each window")
    parser.add_argument("--rounds", type=int, default=3, help="windows of each way")
    parser.add_argument("--json", action="store_true", help="no progress; one line of JSON last")
    options = parser.parse_args()
    hops = {"prompt": prompt_hop(), "completion": completion_hop(), "trajectory": trajectory_hop()}
    figures = {f"{name}_us": value for name, value in hops.items()}
    figures |= {"hop_us": max(hops.values()), "turn_us": turn_us()}
    figures |= requests(options.requests, options.rounds, quiet=options.json)
    print(table(["figure", "value"], figures.items()))
    write_results("tokens", figures)
    print(json_line(figures))


def prompt_hop() -> float:
    """Return microseconds to encode and decode a prompt."""
    ids = np.arange(TOKENS, dtype=np.int32)
    codec = Codec[Any](FROM_RUN_WORKER)

    def hop() -> None:
        buffer, body = array_buffer("token_ids", ids)
        message, found = codec.decode(_sent(encode(Generate("r", "s", 256, (buffer,)), [body])))
        read_buffer(message.buffers[0], found[0])

    return _beyond_bytes(hop, ids)


def completion_hop() -> float:
    """Return microseconds to encode, decode and check a completion."""
    described = null_backend.completion(TOKENS)
    asked = Generate("r", "s", TOKENS, ())
    codec = Codec[Any](TO_RUN_WORKER)

    def hop() -> None:
        message, found = codec.decode(_sent(encode(*null_backend.answer(asked))))
        _, arrays = read_body(message.buffers, found)
        Generation(arrays["token_ids"], arrays["logprobs"], "stop", arrays["policy_spans"])

    return _beyond_bytes(hop, *(np.frombuffer(frame, np.uint8) for _, frame in described))


def trajectory_hop() -> float:
    """Return microseconds to encode, decode and check a trajectory."""
    made = _trajectory()
    arrays = [getattr(made, name) for name in TRAJECTORY]
    codec = Codec[Any](RESULTS)

    def hop() -> None:
        parts = [array_buffer(*part) for part in zip(TRAJECTORY, arrays, strict=True)]
        buffers = tuple([buffer for buffer, _ in parts])
        result = StageResult("w", "r", "run", 1, "done", 0.1, buffers=buffers)
        message, found = codec.decode(_sent(encode(result, [frame for _, frame in parts])))
        _, read = read_body(message.buffers, found)
        Trajectory(**read)

    return _beyond_bytes(hop, *arrays)


def turn_us() -> float:
    """Return microseconds that one turn costs a conversation of 8,192 tokens."""
    template = ChatmlTemplate(tokens.load())
    words = "word " * (TOKENS - 2 * SAMPLED)
    said = tokens.load().encode_marked("so " * (SAMPLED // 2) + "<|im_end|>")
    spans = np.array([[0, len(said), 0]], dtype=np.int32)
    logprobs = np.full(len(said), -0.5, dtype=np.float32)
    made = Generation(np.array(said, dtype=np.int32), logprobs, "stop", spans)
    times = []
    for _ in range(50):
        talk = Conversation(template, [Message("user", words)])
        began = perf_counter()
        talk.prompt()
        talk.sampled(made, 0.0)
        talk.said()
        talk.say([Message("tool", "42")])
        times.append(perf_counter() - began)
    return statistics.median(times) * 1e6


def requests(count: int, rounds: int, *, quiet: bool) -> dict[str, float]:
    """Measure requests by way of the router and straight to a backend, in alternation."""
    found: dict[str, list[float]] = {"routed": [], "direct": []}
    with _processes() as endpoints:
        for number in range(rounds):
            for name in list(endpoints)[:: -1 if number % 2 else 1]:
                times = asyncio.run(_latencies(endpoints[name], count))
                found[name] += times
                if not quiet:
                    print(f"{name:8} p50 {percentile(times, 50):.3f} ms")
    figures = {
        f"{name}_p{q}_ms": percentile(times, q) for name, times in found.items() for q in (50, 99)
    }
    for q in (50, 99):
        figures[f"router_p{q}_ms"] = figures[f"routed_p{q}_ms"] - figures[f"direct_p{q}_ms"]
    return figures


@contextmanager
def _processes() -> Iterator[dict[str, str]]:
    """Start router and backends; yield where to ask, by way."""
    with tempfile.TemporaryDirectory(prefix="rq") as folder:
        path = Path(folder) / "t.yaml"
        path.write_text(TEXT, encoding="utf-8")
        topology = load(path)
        direct = f"ipc://{folder}/direct"
        command = [sys.executable, "-m", "nodes.router", "--topology", str(path)]
        os.environ.update(child_environment())
        router = subprocess.Popen(command)
        calls = {
            "null-0": (null_backend.serve, (str(path), "null-0")),
            "direct": (null_backend.serve_directly, (direct,)),
        }
        try:
            with children("tokens", calls):
                yield {"routed": topology.endpoint("router"), "direct": direct}
        finally:
            router.terminate()
            try:
                router.wait(STOP_S)
            except subprocess.TimeoutExpired:
                router.kill()
                router.wait()


async def _latencies(endpoint: str, count: int) -> list[float]:
    """Return milliseconds of each request, one after the other, after a few that do not count."""
    model = RouterModel(endpoint, "run-0", Bounds(), PATIENCE)
    prompt = np.arange(PROMPT, dtype=np.int32)
    sampling = Sampling(max_tokens=SAMPLED)
    times = []
    try:
        for number in range(count + count // 10):
            began = perf_counter()
            answer = await model.generate("s", prompt, sampling)
            passed = perf_counter() - began
            if len(answer.token_ids) != SAMPLED:
                raise ValueError(f"{len(answer.token_ids)} tokens came back")
            if number >= count // 10:
                times.append(passed * 1e3)
    finally:
        await model.close()
    return times


def _trajectory() -> Trajectory:
    return Trajectory(
        np.arange(TOKENS, dtype=np.int32),
        np.ones(TOKENS, dtype=np.uint8),
        np.full(TOKENS, -0.5, dtype=np.float32),
        np.array([[0, TOKENS, 0]], dtype=np.int32),
    )


def _sent(frames: list[Any]) -> list[Any]:
    """Return frames as they arrive: views of other memory, without the cost of a socket."""
    return [frame if isinstance(frame, bytes) else memoryview(frame) for frame in frames]


def _beyond_bytes(hop: Callable[[], None], *arrays: Any) -> float:
    """Return the microseconds of a hop, less those of copying its arrays once."""
    return max(0.0, _median_us(hop) - _median_us(lambda: [array.copy() for array in arrays]))


def _median_us(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(CALLS):
        began = perf_counter()
        call()
        times.append(perf_counter() - began)
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    main()
