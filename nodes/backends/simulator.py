"""A SIMULATOR of an inference server: there is no model and no GPU behind it.

    python -m nodes.backends.simulator --topology topology.yaml --name sim-0

It answers with text that a script writes (`scripted`), after the time that a server would have
taken (`stepping`), counting the prompt tokens that a server would have had in its cache
(`prefix_cache`). Rewards, lengths and latencies look like those of a model; they are none.

Job: carry these three out as a process behind the router.
Does not know: tasks and expected answers; it sees token IDs alone.
Invariants: one thread. Every ticket is answered, or was aborted, or the router gave this backend
up. SIGTERM: no new session, what is running ends within timeouts.drain_s, goodbye, exit 0.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence as Arguments
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import structlog
import zmq

from engine.errors import NodeFailed, RollmqError
from engine.logs import configure
from engine.process import die_with_parent
from engine.topology import Topology, load
from engine.typed import AtLeast, Count, Mismatch, compile_decoder
from engine.wire import array_buffer, read_buffer

from ..inference.messages import Abort, FailureCode, Generate, Generated, GenerateFailed, Release
from ..presence import Presence
from ..tokens import load as load_tokens
from .link import Asked, Offer, Reset, RouterLink
from .prefix_cache import PrefixCache
from .scripted import Completion, Script, Wish
from .stepping import Batch, Sequence, StepTimes

MODEL = "simulator"
TICK_S = 0.25


@dataclass(frozen=True, slots=True)
class Options:
    """What topology.yaml may say under `options` of a simulator."""

    accuracy: Annotated[float, "the chance of a right answer, where the question is understood"] = (
        0.6
    )
    speed: Annotated[float, "divides every latency; 1 is of the order of one H100"] = 10.0
    seed: Annotated[int, "another one, other answers"] = 0
    context_tokens: Annotated[int, AtLeast(2), "prompt and completion together"] = 8192
    cache_tokens: Annotated[Count, "what the prefix cache holds"] = 262_144
    block_tokens: Annotated[int, AtLeast(1), "what the prefix cache counts in"] = 16


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One request in the batch."""

    prompt: npt.NDArray[np.int32]
    completion: Completion
    cached_tokens: int


class Simulator:
    """The process: one link, one batch."""

    def __init__(self, topology: Topology, node: str) -> None:
        spec = topology.backend(topology.node(node).spec)
        self.options = read_options(spec.options)
        self._node = node
        self._context = zmq.Context()
        self._link = RouterLink(self._context, topology, node, Offer(MODEL, spec.capacity))
        self._presence = Presence(self._context, topology, node, self._link.boot, "backend")
        self._script = Script(load_tokens(), self.options.accuracy, self.options.seed)
        self._cache = PrefixCache(self.options.cache_tokens, self.options.block_tokens)
        self._batch = Batch[Job](StepTimes(speed=self.options.speed))
        self._drain_s = topology.timeouts.drain_s
        self._prompt_tokens = self._cached_tokens = 0
        self._stop_asked = False

    def stop(self, *_signal: Any) -> None:
        """Ask the loop to drain and end."""
        self._stop_asked = True

    def run(self) -> int:
        """Serve until stopped, and return the exit status."""
        log = structlog.get_logger()
        log.info("simulator ready; no model is behind it", speed=self.options.speed)
        give_up_at = 0.0
        while not give_up_at or (len(self._batch) and time.monotonic() < give_up_at):
            self._link.socket.poll(self._timeout_ms())
            now = time.monotonic()
            for sequence in self._batch.advance(now):
                self._answer(sequence)
            for message, body in self._link.receive(now):
                self._take(message, body, now)
            self._link.beat(now, self._batch.tickets(), self.figures())
            self._presence.beat(now, self.figures())
            if self._stop_asked and not give_up_at:
                give_up_at = now + self._drain_s
                self._link.drain()
        self._close()
        return 0

    def figures(self) -> dict[str, float]:
        """Return what status shows."""
        return {
            "running": len(self._batch),
            "steps": self._batch.steps,
            "tokens": self._batch.tokens,
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": self._cached_tokens,
            "garbage": self._link.refusals.total,
        }

    def _timeout_ms(self) -> int:
        if self._batch.due_at is None:
            return int(TICK_S * 1000)
        until_s = min(TICK_S, self._batch.due_at - time.monotonic())
        return max(1, int(until_s * 1000))

    def _take(self, message: Asked | Any, body: list[Any], now: float) -> None:
        match message:
            case Generate():
                self._generate(message, body, now)
            case Abort():
                self._batch.abort(message.request_id)
            case Reset():
                self._batch.clear()
            case Release():
                pass

    def _generate(self, message: Generate, body: list[Any], now: float) -> None:
        try:
            prompt = read_prompt(message, body, load_tokens().size)
        except ValueError as wrong:
            self._refuse(message, "invalid", str(wrong))
            return
        room = self.options.context_tokens - len(prompt)
        if room < 1:
            limit = self.options.context_tokens
            self._refuse(message, "too_long", f"{len(prompt)} tokens, with a context of {limit}")
        else:
            self._add(message, prompt, min(message.max_tokens, room), now)

    def _refuse(self, message: Generate, code: FailureCode, why: str) -> None:
        self._link.answer(GenerateFailed(message.request_id, code, why, retry=False))

    def _add(self, message: Generate, prompt: Any, max_tokens: int, now: float) -> None:
        temperature, stops = message.temperature, message.stop_token_ids
        wish = Wish(message.session, message.seed, max_tokens, temperature, stops)
        completion = self._script.complete(prompt, wish)
        cached = self._cache.match(prompt, self._link.policy_version)
        self._prompt_tokens += len(prompt)
        self._cached_tokens += cached
        job = Job(prompt, completion, cached)
        length = len(completion.token_ids)
        self._batch.add(Sequence(message.request_id, len(prompt) - cached, length, now, job))

    def _answer(self, sequence: Sequence[Job]) -> None:
        job, version = sequence.work, self._link.policy_version
        ids, logprobs = job.completion.token_ids, job.completion.logprobs
        self._cache.store(np.concatenate([job.prompt, ids[:-1]]), version)
        spans = np.array([[0, len(ids), version]], dtype=np.int32)
        arrays = {"token_ids": ids, "logprobs": logprobs, "policy_spans": spans}
        buffers, body = zip(*(array_buffer(*each) for each in arrays.items()), strict=True)
        assert sequence.started_at is not None
        assert sequence.first_at is not None
        assert sequence.ended_at is not None
        message = Generated(
            sequence.ticket,
            job.completion.finish_reason,
            job.cached_tokens,
            self._node,
            queue_s=sequence.started_at - sequence.arrived_at,
            prefill_s=sequence.first_at - sequence.started_at,
            decode_s=sequence.ended_at - sequence.first_at,
            buffers=buffers,
        )
        self._link.answer(message, body)

    def _close(self) -> None:
        structlog.get_logger().info("simulator stopped", unanswered=len(self._batch))
        self._link.close()
        self._presence.close()
        self._context.term()


def read_prompt(message: Generate, body: list[Any], vocabulary: int) -> npt.NDArray[np.int32]:
    """Return the prompt of a request, int32 [n].

    Raises: ValueError if it is no such array, empty, beyond the vocabulary, or nothing is asked.
    """
    buffer = message.buffers[0]
    if buffer.dtype != "int32" or len(buffer.shape) != 1:
        raise ValueError(f"expected int32 [n], got {buffer.dtype} {list(buffer.shape)}")
    prompt: npt.NDArray[np.int32] = read_buffer(buffer, body[0])
    if not len(prompt) or not message.max_tokens:
        raise ValueError("expected at least one token and max_tokens over 0")
    if prompt.min() < 0 or prompt.max() >= vocabulary:
        raise ValueError(f"token IDs go from 0 to {vocabulary - 1}")
    return prompt


def read_options(options: dict[str, object]) -> Options:
    """Return a simulator's options.

    Raises: NodeFailed, naming the option at fault.
    """
    try:
        return compile_decoder(Options)(options)
    except Mismatch as wrong:
        raise NodeFailed(f"simulator options: {wrong}") from None


def main(arguments: Arguments[str] | None = None) -> int:
    """Run a simulator until SIGTERM or SIGINT; return the exit status."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="nodes.backends.simulator", description="NO model")
    parser.add_argument("--topology", required=True)
    parser.add_argument("--name", required=True)
    chosen = parser.parse_args(arguments)
    try:
        topology = load(chosen.topology)
        configure(chosen.name, topology.log_level)
        simulator = Simulator(topology, chosen.name)
    except RollmqError as wrong:
        print(wrong, file=sys.stderr)  # noqa: T201 - before there is a log
        return 2
    signal.signal(signal.SIGTERM, simulator.stop)
    signal.signal(signal.SIGINT, simulator.stop)
    return simulator.run()


if __name__ == "__main__":
    sys.exit(main())
