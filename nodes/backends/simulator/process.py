"""A SIMULATOR of an inference server: there is no model and no GPU behind it.

    python -m nodes.backends.simulator --topology topology.yaml --name sim-0

It answers with text that a script writes (`scripted`), after the time that a server would have
taken (`stepping`), by the rules by which a server schedules and caches (`schedule`, `blocks`).
Rewards, lengths and latencies look like those of a model; they are none.

Job: carry these out as a process behind the router.
Does not know: tasks and expected answers; it sees token IDs alone.
Invariants: one thread. Every ticket is answered, or the router gave this backend up, or a fault of
kind `hang` was asked for. SIGTERM: no new session, what is running ends within timeouts.drain_s,
goodbye, exit 0.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence as Arguments
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

from engine.arrays import array_buffer
from engine.errors import NodeFailed, RollmqError
from engine.logs import configure, get_logger
from engine.presence import Presence
from engine.process import die_with_parent
from engine.reread import reread_on_hangup
from engine.topology import Topology, load

from ...inference.messages import (
    Abort,
    Aborted,
    FailureCode,
    Generate,
    Generated,
    GenerateFailed,
    Pause,
    Release,
    Resume,
    UpdateWeights,
)
from ...tasks import FinishReason
from ...tokens import load as load_tokens
from ..link import Asked, Offer, Reset, RouterLink
from ..prompt import read_prompt
from .blocks import block_names
from .demonstrations import Demonstrations, load_demonstrations
from .faults import Fault, Faults
from .options import read_options
from .schedule import Request, Scheduler
from .scripted import Completion, Wish, script
from .stepping import StepLoop
from .updates import Updates

MODEL = "simulator"
TICK_S = 0.25
REFUSALS: dict[str, tuple[FailureCode, str]] = {
    "refuse": ("draining", "503, as asked for"),
    "full": ("full", "429, as asked for"),
    "error": ("backend_error", "500, as asked for"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What a request will be answered with."""

    completion: Completion


class Simulator:
    """The process: one link, one step loop."""

    def __init__(self, topology: Topology, node: str) -> None:
        spec = topology.backend(topology.node(node).spec)
        self.options = read_options(spec.options)
        self._node = node
        self._context = zmq.Context()
        self._link = RouterLink(self._context, topology, node, Offer(MODEL, spec.capacity))
        self._presence = Presence(self._context, topology, node, self._link.boot, "backend")
        chosen = self.options.script, load_tokens(), self.options.accuracy, self.options.seed
        self._script = script(*chosen, _demonstrations(self.options.demonstrations))
        self._scheduler = Scheduler[Job](self.options.limits())
        self._loop = StepLoop(self._scheduler, self.options.times())
        self._updates = Updates(self._loop)
        self._faults = Faults(self.options.faults, self.options.seed)
        self._hanging: dict[str, None] = {}
        self._slow: dict[str, float] = {}
        self._drain_s = topology.timeouts.drain_s
        self._stop_asked = False

    def stop(self, *_signal: Any) -> None:
        """Ask the loop to drain and end."""
        self._stop_asked = True

    def run(self) -> int:
        """Serve until stopped, and return the exit status."""
        log = get_logger()
        log.info("simulator ready; no model is behind it", speed=self.options.speed)
        give_up_at = 0.0
        while not give_up_at or (len(self._loop) and time.monotonic() < give_up_at):
            self._link.socket.poll(self._timeout_ms())
            now = time.monotonic()
            self._advance(now)
            for message, body in self._link.receive(now):
                self._take(message, body, now)
            self._settle()
            self._link.beat(now, (*self._loop.tickets(), *self._hanging), self.figures())
            self._presence.beat(now, self.figures())
            if self._stop_asked and not give_up_at:
                give_up_at = now + self._drain_s
                self._link.drain()
        self._close()
        return 0

    def figures(self) -> dict[str, float]:
        """Return what status shows; the names are those of vLLM's metrics."""
        scheduler, counts = self._scheduler, self._scheduler.counts
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting) + len(self._hanging),
            "kv_use": 1.0 - scheduler.pool.free / scheduler.pool.size,
            "preemptions": counts.preemptions,
            "prefix_queries": counts.prefix_queries,
            "prefix_hits": counts.prefix_hits,
            "steps": counts.steps,
            "tokens": counts.tokens,
            "garbage": self._link.refusals.total,
        }

    def _timeout_ms(self) -> int:
        if self._loop.due_at is None:
            return int(TICK_S * 1000)
        until_s = min(TICK_S, self._loop.due_at - time.monotonic())
        return max(1, int(until_s * 1000))

    def _advance(self, now: float) -> None:
        for request in self._loop.advance(now):
            self._answer(request, request.work.completion.finish_reason)

    def _settle(self) -> None:
        for answer in self._updates.settle():
            self._link.policy_version = self._loop.version
            self._link.answer(answer)

    def _take(self, message: Asked | Any, body: list[Any], now: float) -> None:
        match message:
            case Generate():
                self._generate(message, body, now)
            case Abort(tickets):
                for ticket in tickets:
                    self._abort(ticket, now)
            case Pause():
                for request in self._updates.pause(message, now):
                    self._answer(request, "abort")
            case UpdateWeights():
                self._updates.change(message)
            case Resume():
                self._updates.resume(message, now)
            case Reset():
                self._loop.clear()
                self._updates.clear()
                self._hanging.clear()
                self._slow.clear()
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
        elif not self._suffer(self._faults.next(), message):
            self._add(message, prompt, min(message.max_tokens, room), now)

    def _suffer(self, fault: Fault | None, message: Generate) -> bool:
        """Carry a fault out; return whether that was all that becomes of the request."""
        if fault is None:
            return False
        get_logger().warning("fault, as asked for", fault=fault.kind)
        if fault.kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "slow":
            self._slow[message.request_id] = fault.factor
            self._loop.slowdown = max(self._slow.values())
            return False
        if fault.kind == "hang":
            self._hanging[message.request_id] = None
        else:
            self._refuse(message, *REFUSALS[fault.kind], retry=True)
        return True

    def _refuse(
        self, message: Generate, code: FailureCode, why: str, *, retry: bool = False
    ) -> None:
        self._link.answer(GenerateFailed(message.request_id, code, why, retry))

    def _add(
        self, message: Generate, prompt: npt.NDArray[np.int32], max_tokens: int, now: float
    ) -> None:
        temperature, stops = message.temperature, message.stop_token_ids
        wish = Wish(message.session, message.seed, max_tokens, temperature, stops)
        completion = self._script.complete(prompt, wish)
        length = len(completion.token_ids)
        tokens = np.concatenate([prompt, completion.token_ids])
        names = block_names(tokens, self.options.block_tokens, message.cache_salt)
        request = Request(message.request_id, len(prompt), length, names, now, Job(completion))
        self._loop.add(request)

    def _abort(self, ticket: str, now: float) -> None:
        request = self._loop.abort(ticket, now)
        is_hanging = ticket in self._hanging
        self._end(ticket)
        if request is not None or is_hanging:
            self._link.answer(Aborted(ticket, request.emitted if request else 0))

    def _end(self, ticket: str) -> None:
        self._hanging.pop(ticket, None)
        if self._slow.pop(ticket, None):
            self._loop.slowdown = max(self._slow.values(), default=1.0)

    def _answer(self, request: Request[Job], reason: FinishReason) -> None:
        self._end(request.ticket)
        emitted = request.emitted
        arrays = {
            "token_ids": request.work.completion.token_ids[:emitted],
            "logprobs": request.work.completion.logprobs[:emitted],
            "policy_spans": policy_spans(request.marks, emitted),
        }
        buffers, body = zip(*(array_buffer(*each) for each in arrays.items()), strict=True)
        assert request.started_at is not None
        assert request.first_at is not None
        assert request.ended_at is not None
        message = Generated(
            request.ticket,
            reason,
            request.cached_tokens,
            self._node,
            queue_s=request.started_at - request.arrived_at,
            prefill_s=request.first_at - request.started_at,
            decode_s=request.ended_at - request.first_at,
            buffers=buffers,
        )
        self._link.answer(message, body)

    def _close(self) -> None:
        get_logger().info("simulator stopped", unanswered=len(self._loop))
        self._link.close()
        self._presence.close()
        self._context.term()


def policy_spans(marks: list[tuple[int, int]], length: int) -> npt.NDArray[np.int32]:
    """Return int32 [k, 3], (start, end, version), of marks that say where a version begins."""
    starts = [start for start, _ in marks if start < length]
    ends = [*starts[1:], length]
    versions = [version for start, version in marks if start < length]
    return np.array(list(zip(starts, ends, versions, strict=True)), dtype=np.int32)


def _demonstrations(path: str) -> Demonstrations:
    try:
        return load_demonstrations(path)
    except (OSError, ValueError, KeyError, StopIteration) as wrong:
        why = f"simulator options: demonstrations: {type(wrong).__name__}: {wrong}"
        raise NodeFailed(why) from wrong


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
        reread_on_hangup(chosen.topology, chosen.name)
        simulator = Simulator(topology, chosen.name)
    except RollmqError as wrong:
        print(wrong, file=sys.stderr)  # noqa: T201 - before there is a log
        return 2
    signal.signal(signal.SIGTERM, simulator.stop)
    signal.signal(signal.SIGINT, simulator.stop)
    return simulator.run()
