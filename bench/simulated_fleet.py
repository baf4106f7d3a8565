"""A fleet of simulated servers under the router's own placement, in simulated time.

Job: drive sessions through `Placement` and `StepLoop`s, an event at a time, and count.
Does not know: sockets or a clock: a run gives the same figures on every machine.
Invariants: the number of open sessions stays at the load: one that ends is replaced at once. Only
what happens in the window counts. A turn counts as its share of its rollout.

Left out: time on the network and in the router, weight updates and failures.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any

from bench.measure import percentile
from bench.routing_references import ConsistentHashing
from bench.sessions import Session, Turn
from nodes.backends.simulator.schedule import Limits, Request, Scheduler
from nodes.backends.simulator.stepping import StepLoop, StepTimes
from nodes.inference import events
from nodes.inference.fleet import Rules
from nodes.inference.placement import Placement
from nodes.inference.policies import Policy

RULES = Rules(queue=1_000_000, idle_s=1e9, lost_after_s=1e9, unplaced_s=1e9)
SHIFT = 20  # bits of a block's place in its name


@dataclass(frozen=True, slots=True)
class Fleet:
    """Equal backends: how many, what each holds, and the requests that each takes at once."""

    backends: int
    cache_tokens: int
    capacity: int = 256
    block_tokens: int = 16

    def limits(self) -> Limits:
        """Return the limits of one backend's scheduler."""
        blocks = self.cache_tokens // self.block_tokens
        return Limits(blocks, self.block_tokens, step_tokens=8192, step_requests=self.capacity)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a policy did with a load in the window; times in seconds, rates as shares."""

    policy: str
    load: int
    rollouts_per_s: float
    hit_rate: float
    preemptions: int
    turn_p50_s: float
    turn_p99_s: float
    kv_use: float


@dataclass(slots=True)
class Talk:
    """An open session: the turn it is at, and all its tokens until then, as block names."""

    session: Session
    place: int = 0
    tokens: int = 0
    asked_at: float = 0.0
    names: list[int] = field(default_factory=list)

    @property
    def turn(self) -> Turn:
        """Return the turn under way."""
        return self.session.turns[self.place]

    def extend(self, tokens: int, block_tokens: int) -> None:
        """Name the blocks up to `tokens`; shared tokens give shared names."""
        shared = self.session.system_tokens // block_tokens
        grouped = (self.session.system_tokens + self.session.task_tokens) // block_tokens
        for place in range(len(self.names), tokens // block_tokens):
            owner = 0
            if place >= grouped:
                owner = 2 * self.session.number
            elif place >= shared:
                owner = 2 * self.session.group + 1
            self.names.append((owner << SHIFT) + place)


class Run:
    """One policy under one load, from an empty fleet; `sessions_bound` is the router's."""

    def __init__(
        self,
        name: str,
        policy: Policy,
        fleet: Fleet,
        sessions: Iterator[Session],
        load: int,
        sessions_bound: int = 0,
    ) -> None:
        self._name = name
        self._policy = policy
        self._fleet = fleet
        self._sessions = sessions
        self._load = load
        self._placement = Placement(policy, replace(RULES, sessions=sessions_bound), "bench")
        self._loops: dict[str, StepLoop[Talk]] = {}
        self._due: list[tuple[float, int, str]] = []
        self._asks: list[tuple[float, int, Talk]] = []
        self._talks: dict[str, Talk] = {}
        self._order = 0
        self._opens_at = self._closes_at = 0.0
        self._rollouts = 0.0
        self._turns_s: list[float] = []
        self._prompt_tokens = self._cached_tokens = self._preemptions = 0
        self._use: list[float] = []
        for number in range(fleet.backends):
            self._open_backend(f"sim-{number}")

    def figures(self, warmup_s: float, window_s: float) -> Figures:
        """Run until the window closes and return what happened in it."""
        self._opens_at, self._closes_at = warmup_s, warmup_s + window_s
        for number in range(self._load):
            self._ask(Talk(next(self._sessions)), number * warmup_s / (2 * self._load))
        self._run()
        return Figures(
            self._name,
            self._load,
            self._rollouts / window_s,
            self._cached_tokens / max(1, self._prompt_tokens),
            self._preemptions,
            percentile(self._turns_s, 50),
            percentile(self._turns_s, 99),
            sum(self._use) / max(1, len(self._use)),
        )

    def _open_backend(self, name: str) -> None:
        self._loops[name] = StepLoop(Scheduler[Talk](self._fleet.limits()), StepTimes())
        self._placement.handle(events.BackendUp(name, name, self._fleet.capacity), 0.0)
        self._placement.handle(events.BackendOpened(name), 0.0)

    def _run(self) -> None:
        while True:
            step_at = self._due[0][0] if self._due else float("inf")
            ask_at = self._asks[0][0] if self._asks else float("inf")
            now = min(step_at, ask_at)
            if now >= self._closes_at:
                return
            if ask_at <= step_at:
                self._send(heappop(self._asks)[2], now)
            else:
                self._step(heappop(self._due)[2], now)

    def _ask(self, talk: Talk, at: float) -> None:
        self._order += 1
        heappush(self._asks, (at, self._order, talk))

    def _send(self, talk: Talk, now: float) -> None:
        name = str(talk.session.number)
        talk.asked_at = now
        self._talks[name] = talk
        self._do(events.Asked("run", f"{name}.{talk.place}", name), now)

    def _do(self, event: events.Event, now: float) -> None:
        if isinstance(event, events.Asked) and isinstance(self._policy, ConsistentHashing):
            self._policy.session = event.session
        for instruction in self._placement.handle(event, now):
            if isinstance(instruction, events.Dispatch):
                self._dispatch(instruction, now)

    def _dispatch(self, dispatch: events.Dispatch, now: float) -> None:
        talk = self._talks[dispatch.request_id.split(".")[0]]
        session, turn = talk.session, talk.turn
        if not talk.place:
            talk.tokens = session.system_tokens + session.task_tokens
        prompt_tokens = talk.tokens + turn.added_tokens
        talk.extend(prompt_tokens + turn.answer_tokens, self._fleet.block_tokens)
        loop = self._loops[dispatch.backend]
        was_idle = loop.due_at is None
        loop.add(Request(dispatch.ticket, prompt_tokens, turn.answer_tokens, talk.names, now, talk))
        if was_idle:
            self._watch(dispatch.backend)

    def _watch(self, backend: str) -> None:
        due_at = self._loops[backend].due_at
        if due_at is not None:
            self._order += 1
            heappush(self._due, (due_at, self._order, backend))

    def _step(self, backend: str, now: float) -> None:
        loop = self._loops[backend]
        preemptions = loop.scheduler.counts.preemptions
        ended = loop.advance(now)
        if now >= self._opens_at:
            self._preemptions += loop.scheduler.counts.preemptions - preemptions
            if loop.scheduler.counts.steps % 64 == 0:
                self._use.append(1 - loop.scheduler.pool.free / loop.scheduler.pool.size)
        self._watch(backend)
        for request in ended:
            self._end(backend, request, now)

    def _end(self, backend: str, request: Request[Any], now: float) -> None:
        talk: Talk = request.work
        if now >= self._opens_at:
            self._rollouts += 1 / len(talk.session.turns)
            self._turns_s.append(now - talk.asked_at)
            self._prompt_tokens += request.prompt_tokens
            self._cached_tokens += request.cached_tokens
        self._do(events.Answered(backend, request.ticket), now)
        tool_s = talk.turn.tool_s
        talk.tokens = request.prompt_tokens + request.emitted
        talk.place += 1
        if talk.place < len(talk.session.turns):
            self._ask(talk, now + tool_s)
        else:
            name = str(talk.session.number)
            del self._talks[name]
            self._do(events.Released(name), now)
            self._ask(Talk(next(self._sessions)), now)
