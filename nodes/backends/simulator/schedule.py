"""What a server computes in each step: the rules of vLLM's v1 scheduler, first come first served.

A step has a budget of tokens. Running requests are served first, in the order in which they were
admitted: one token each while they decode, a chunk of what is missing while they do not. Then
requests are admitted from the queue while budget, places and blocks last; a prompt must fit whole,
and what of it the prefix cache holds is not computed. When a running request needs a block and
there is none, the one admitted last goes back to the front of the queue, loses its blocks, and
computes everything again when it returns (often it finds most of it in the cache).

Job: decide each step and count. Does not know: tokens, texts, seconds or sockets.
Invariants: a request is in the queue without blocks, running with a block for each computed token,
or over; `end_step` follows each `begin_step`. At least one token of a prompt is computed. A request
that fits into the cache alone ends, whatever else arrives. No block is lost.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from .blocks import BlockPool, Names

Work = TypeVar("Work")
Gate = Literal["open", "no_new", "closed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The size of the cache in blocks, and the most that one step takes."""

    blocks: int
    block_tokens: int = 16
    step_tokens: int = 8192
    step_requests: int = 256

    def holds(self, tokens: int) -> bool:
        """Return whether a request of so many tokens fits into an empty cache."""
        return -(-tokens // self.block_tokens) <= self.blocks


@dataclass(slots=True, eq=False)
class Request(Generic[Work]):
    """One request: what it needs, what of it is done, and when it was, in seconds.

    names: of the whole blocks of prompt and completion. Times are None until they have come.
    cached_tokens: prompt tokens found in the cache when it was first admitted, -1 before.
    marks: (first token, policy version) of each stretch of the completion.
    """

    ticket: str
    prompt_tokens: int
    length: int
    names: Names
    arrived_at: float
    work: Work
    computed: int = 0
    emitted: int = 0
    cached_tokens: int = -1
    preemptions: int = 0
    blocks: list[int] = field(default_factory=list)
    named: int = 0
    is_over: bool = False
    marks: list[tuple[int, int]] = field(default_factory=list)
    started_at: float | None = None
    first_at: float | None = None
    ended_at: float | None = None

    @property
    def tokens(self) -> int:
        """Count the tokens known by now: the prompt, and what was sampled."""
        return self.prompt_tokens + self.emitted


@dataclass(slots=True)
class Step(Generic[Work]):
    """What one step computes: so many tokens of each request."""

    parts: list[tuple[Request[Work], int]] = field(default_factory=list)
    started: list[Request[Work]] = field(default_factory=list)
    prefilling: list[Request[Work]] = field(default_factory=list)
    prefill_tokens: int = 0
    decoding: int = 0

    def add(self, request: Request[Work], tokens: int, *, is_decoding: bool) -> None:
        """Compute `tokens` more of a request."""
        self.parts.append((request, tokens))
        if is_decoding:
            self.decoding += 1
        else:
            self.prefill_tokens += tokens
            self.prefilling.append(request)


@dataclass(slots=True)
class Counts:
    """What happened since the start; prefix figures are of first admissions, as vLLM's are."""

    steps: int = 0
    tokens: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


class Scheduler(Generic[Work]):
    """Requests, their blocks and their turn."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = BlockPool(limits.blocks)
        self.counts = Counts()
        self.gate: Gate = "open"
        self.waiting: deque[Request[Work]] = deque()
        self.running: list[Request[Work]] = []

    def __len__(self) -> int:
        """Return how many requests are not over."""
        return len(self.waiting) + len(self.running)

    def add(self, request: Request[Work]) -> None:
        """Queue a request.

        Raises: ValueError if it can never fit into the cache, or asks for nothing.
        """
        tokens = request.prompt_tokens + request.length
        if not self.limits.holds(tokens) or not request.prompt_tokens or not request.length:
            raise ValueError(f"{tokens} tokens, with {self.limits.blocks} blocks")
        self.waiting.append(request)

    def remove(self, request: Request[Work]) -> None:
        """End a request early; its named blocks stay known."""
        request.is_over = True
        if request in self.running:
            self.running.remove(request)
            self._free(request)
        else:
            self.waiting.remove(request)

    def begin_step(self) -> Step[Work] | None:
        """Return what the next step computes, or None if there is nothing that it can."""
        if self.gate == "closed":
            return None
        step, preemptions = Step[Work](), self.counts.preemptions
        budget = self._continue(step)
        if self.counts.preemptions == preemptions:
            self._admit(step, budget)
        return step if step.parts else None

    def end_step(self, step: Step[Work]) -> list[Request[Work]]:
        """Take a step as computed; return the requests that ended by it, in order."""
        self.counts.steps += 1
        ended = []
        for request, tokens in step.parts:
            if request.is_over:
                continue
            request.computed += tokens
            if request.computed == request.prompt_tokens + request.emitted:
                request.emitted += 1
                self.counts.tokens += 1
                if request.emitted == request.length:
                    request.is_over = True
                    self._free(request)
                    ended.append(request)
        if ended:
            self.running = [request for request in self.running if not request.is_over]
        return ended

    def _continue(self, step: Step[Work]) -> int:
        budget, place = self.limits.step_tokens, 0
        while place < len(self.running) and budget:
            request = self.running[place]
            missing = request.prompt_tokens + request.emitted - request.computed
            tokens = min(missing, budget)
            if not self._make_room(request, request.computed + tokens):
                break
            self._name(request, request.computed + tokens)
            step.add(request, tokens, is_decoding=missing == 1 and request.emitted > 0)
            budget -= tokens
            place += 1
        return budget

    def _make_room(self, request: Request[Work], tokens: int) -> bool:
        blocks = self._blocks_for(tokens) - len(request.blocks)
        if blocks <= 0:
            return True
        while blocks > self.pool.free:
            last = self.running.pop()
            self._free(last)
            last.computed = 0
            last.preemptions += 1
            self.waiting.appendleft(last)
            self.counts.preemptions += 1
            if last is request:
                return False
        request.blocks += self.pool.take(blocks)
        return True

    def _admit(self, step: Step[Work], budget: int) -> None:
        while self.waiting and budget and len(self.running) < self.limits.step_requests:
            request = self.waiting[0]
            if self.gate == "no_new" and not request.preemptions:
                return
            known = self.pool.find(request.names, (request.tokens - 1) // self.limits.block_tokens)
            needed = self._blocks_for(request.tokens) - len(known)
            if needed + self.pool.unused(known) > self.pool.free:
                return
            self.waiting.popleft()
            tokens = self._start(request, known, budget)
            step.add(request, tokens, is_decoding=False)
            step.started.append(request)
            budget -= tokens

    def _start(self, request: Request[Work], known: list[int], budget: int) -> int:
        self.pool.share(known)
        request.blocks, request.named = known, len(known)
        request.computed = len(known) * self.limits.block_tokens
        if not request.preemptions:
            self.counts.prefix_queries += request.tokens
            self.counts.prefix_hits += request.computed
        if request.cached_tokens < 0:
            request.cached_tokens = request.computed
        tokens = min(request.tokens - request.computed, budget)
        blocks = self._blocks_for(request.computed + tokens) - len(known)
        request.blocks += self.pool.take(blocks)
        self._name(request, request.computed + tokens)
        self.running.append(request)
        return tokens

    def _name(self, request: Request[Work], tokens: int) -> None:
        full = tokens // self.limits.block_tokens
        while request.named < full:
            self.pool.name(request.blocks[request.named], request.names[request.named])
            request.named += 1

    def _free(self, request: Request[Work]) -> None:
        self.pool.give_back(request.blocks)
        request.blocks, request.named = [], 0

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_tokens)
