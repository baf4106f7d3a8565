"""A backend that speaks the router's edge and samples nothing: what it does wrong is an option.

    python -m tests.fake_backend --topology t.yaml --name fake-0 [--capacity 4] [--token-s 0.02]
        [--tokens 8] [--version 0] [--short-logprobs N] [--errors N] [--refuse-loads]
        [--loads FILE] [--slow-load-s S]

Each completion has `--tokens` tokens, one every `--token-s` seconds; token ID i is i + 5, its
log-probability -0.5, and its span the version that was loaded when it was due. While paused no
token is due. It runs no model; tests look at what the router makes of it.

--short-logprobs N  leaves out N log-probabilities
--errors N          the first N completions after the probe fail inside
--refuse-loads      every update_weights fails
--loads FILE        appends "version source" to it at each load, and each prompt's cache salt
"""

import argparse
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from engine.arrays import array_buffer
from engine.process import die_with_parent
from engine.topology import load
from nodes.backends.link import Offer, Reset, RouterLink
from nodes.inference.messages import (
    Abort,
    Aborted,
    Generate,
    Generated,
    GenerateFailed,
    Pause,
    Resume,
    UpdateStep,
    UpdateWeights,
)


@dataclass(slots=True)
class Job:
    """A completion that grows: one version for each of its tokens."""

    message: Generate
    wanted: int
    next_at: float
    versions: list[int] = field(default_factory=list)


class Fake:
    """One link and the completions that grow behind it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.context = zmq.Context()
        offer = Offer("fake", options.capacity)
        self.link = RouterLink(self.context, load(options.topology), options.name, offer)
        self.link.policy_version = options.version
        self.jobs: dict[str, Job] = {}
        self.paused = ""
        self.waiting: Pause | None = None
        self.loading: tuple[UpdateWeights, float] | None = None  # and when it is done
        self.steps: dict[tuple[str, str], UpdateStep] = {}
        self.completed = 0
        self.running = True

    def run(self) -> None:
        while self.running:
            self.link.socket.poll(5)
            now = time.monotonic()
            for message, _ in self.link.receive(now):
                self.take(message, now)
            self.grow(now)
            self.link.beat(now, tuple(self.jobs), self.figures())
        self.link.close()
        self.context.term()

    def figures(self) -> dict[str, float]:
        """Return what every running completion has, at least."""
        return {"least": min((len(job.versions) for job in self.jobs.values()), default=0)}

    def take(self, message: Any, now: float) -> None:
        match message:
            case Generate():
                self.note(f"salt {message.cache_salt}")
                wanted = min(message.max_tokens, self.options.tokens)
                self.jobs[message.request_id] = Job(message, wanted, now + self.options.token_s)
            case Abort(tickets):
                for ticket in tickets:
                    job = self.jobs.pop(ticket, None)
                    if job is not None:
                        self.link.answer(Aborted(ticket, len(job.versions)))
            case Reset():
                self.jobs.clear()
                self.steps.clear()
                self.paused, self.waiting, self.loading = "", None, None
            case Pause() | UpdateWeights() | Resume():
                self.step(message)

    def step(self, message: Pause | UpdateWeights | Resume) -> None:
        key = message.update_id, message.kind
        if key not in self.steps:
            error = self.do(message)
            if error is None:
                return
            version = self.link.policy_version
            self.steps[key] = UpdateStep(message.update_id, message.kind, version, error)
        self.link.answer(self.steps[key])

    def do(self, message: Pause | UpdateWeights | Resume) -> str | None:
        match message:
            case Pause(update_id, mode):
                if mode == "wait" and self.jobs:
                    self.waiting = message
                    return None
                self.paused = update_id
                self.note("pause")
                if mode == "abort":
                    for ticket in list(self.jobs):
                        self.answer(ticket, "abort")
            case UpdateWeights(_, version, source):
                if self.options.slow_load_s and self.loading is None:
                    self.loading = message, time.monotonic() + self.options.slow_load_s
                if self.loading is not None and time.monotonic() < self.loading[1]:
                    return None
                self.loading = None
                if self.options.refuse_loads:
                    return f"cannot read {source}"
                self.note(f"load {version} {source}")
                self.link.policy_version = version
            case Resume():
                self.paused = ""
                self.note("resume")
        return ""

    def note(self, line: str) -> None:
        if self.options.loads:
            with Path(self.options.loads).open("a", encoding="utf-8") as file:
                file.write(f"{self.options.name} {line}\n")

    def grow(self, now: float) -> None:
        if self.waiting is not None and not self.jobs:
            waiting, self.waiting = self.waiting, None
            self.step(waiting)
        if self.loading is not None and now >= self.loading[1]:
            self.step(self.loading[0])
        for ticket, job in list(self.jobs.items()):
            if self.paused:
                job.next_at = now + self.options.token_s
            while len(job.versions) < job.wanted and now >= job.next_at:
                job.next_at += self.options.token_s
                job.versions.append(self.link.policy_version)
            if len(job.versions) >= job.wanted:
                self.answer(ticket, "stop")

    def answer(self, ticket: str, finish_reason: Any) -> None:
        job = self.jobs.pop(ticket)
        self.completed += 1
        if 1 < self.completed <= 1 + self.options.errors:
            self.link.answer(GenerateFailed(ticket, "backend_error", "it broke", retry=True))
            return
        count = len(job.versions)
        ids = np.arange(5, 5 + count, dtype=np.int32)
        logprobs = np.full(count - self.options.short_logprobs, -0.5, dtype=np.float32)
        arrays = {"token_ids": ids, "logprobs": logprobs, "policy_spans": spans(job.versions)}
        buffers, body = zip(*(array_buffer(*each) for each in arrays.items()), strict=True)
        times = {"queue_s": 0.0, "prefill_s": 0.0, "decode_s": count * self.options.token_s}
        self.link.answer(
            Generated(ticket, finish_reason, 0, self.options.name, buffers=buffers, **times), body
        )

    def stop(self, *_signal: Any) -> None:
        self.running = False


def spans(versions: Sequence[int]) -> Any:
    """Return [start, end, version] for each run of equal versions, int32 [k, 3]."""
    edges = [0, *(i for i in range(1, len(versions)) if versions[i] != versions[i - 1])]
    ends = [*edges[1:], len(versions)]
    found = [[a, b, versions[a]] for a, b in zip(edges, ends, strict=True) if b > a]
    return np.array(found, dtype=np.int32).reshape(-1, 3)


def main() -> None:
    """Serve until SIGTERM."""
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--topology", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--capacity", type=int, default=4)
    parser.add_argument("--token-s", type=float, default=0.02)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--version", type=int, default=0)
    parser.add_argument("--short-logprobs", type=int, default=0)
    parser.add_argument("--errors", type=int, default=0)
    parser.add_argument("--refuse-loads", action="store_true")
    parser.add_argument("--loads", default="")
    parser.add_argument("--slow-load-s", type=float, default=0.0)
    fake = Fake(parser.parse_args())
    signal.signal(signal.SIGTERM, fake.stop)
    fake.run()


if __name__ == "__main__":
    main()
