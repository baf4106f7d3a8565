"""The router's rules as a state machine: events in, instructions out.

A session stays on one backend. A request waits there for one of the backend's `capacity` places;
all requests that wait are bounded by `queue`. A backend that is lost gives its sessions back at
once, and they are placed again; its requests go elsewhere once, which is safe because a completion
is delivered whole or not at all. This is the only layer that retries. Whoever aborts a request is
told how many tokens it had sampled, as soon as its backend says so.

A new session waits while as many are open as `sessions` allows for each open backend: with more of
them than its cache can hold, a backend computes every prompt anew and answers fewer, not more.
Sessions that have begun are placed at once, wherever they come from.

Job: decide. Does not know: sockets, frames or clocks; `now` is an argument, in seconds. Nor why a
backend is open: `standing` says that.
Invariants: a request is in exactly one place: without a backend, waiting at one, or running there
under its current ticket. Every request ends by exactly one of Deliver, Fail and Drop. An answer to
any other ticket is late: counted, and otherwise ignored. A request id that is open already is the
same request; after its end it is a new one. New sessions are placed on open backends only, and
nothing is dispatched to one that is held.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .events import (
    Aborted,
    Answered,
    Asked,
    AskHello,
    BackendAlive,
    BackendGone,
    BackendHeld,
    BackendOpened,
    BackendShut,
    BackendUp,
    ClientGone,
    Closing,
    Deliver,
    Dispatch,
    Drop,
    Event,
    Fail,
    Forget,
    Instruction,
    Lost,
    Refused,
    Released,
    Spent,
    Stop,
    Stopped,
    Tick,
    Welcome,
)
from .fleet import Backend, Request, Rules, Session, Stopping
from .policies import Policy

TRIES = 2
_COUNTED = (
    "asked",
    "repeated",
    "delivered",
    "failed",
    "dropped",
    "retried",
    "late",
    "lost",
    "held_back",
)
ABORTED = "the backend aborted it unasked"
Rule = Callable[[Any, float], None]


class Placement:
    """Which request and which session is where."""

    def __init__(self, policy: Policy, rules: Rules, router_id: str) -> None:
        self.policy = policy
        self.rules = rules
        self.requests: dict[str, Request] = {}
        self.sessions: OrderedDict[str, Session] = OrderedDict()
        self.backends: dict[str, Backend] = {}
        self.unplaced: OrderedDict[str, float] = OrderedDict()
        self.stopping: dict[str, Stopping] = {}
        self.salt = ""  # of sessions that begin now
        self.is_closing = False
        self.counts = dict.fromkeys(_COUNTED, 0)
        self._router_id = router_id
        self._tickets = 0
        self._out: list[Instruction] = []
        self._rules: dict[type, Rule] = {
            Asked: self._asked,
            Aborted: self._aborted,
            Released: self._released,
            ClientGone: self._client_gone,
            BackendUp: self._backend_up,
            BackendAlive: self._backend_alive,
            BackendOpened: self._backend_opened,
            BackendShut: self._backend_shut,
            BackendHeld: self._backend_held,
            BackendGone: self._backend_gone,
            Answered: self._answered,
            Stopped: self._stopped,
            Refused: self._refused,
            Closing: self._closing,
            Tick: self._tick,
        }

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Return what `event` leads to, in the order in which it has to be done."""
        self._rules[event.__class__](event, now)
        out, self._out = self._out, []
        return out

    def waiting(self) -> int:
        """Count the requests that no backend works on."""
        return len(self.unplaced) + sum(len(each.waiting) for each in self.backends.values())

    def figures(self) -> dict[str, float]:
        """Return what status shows: what is open now, and what happened since the start."""
        running = sum(len(backend.running) for backend in self.backends.values())
        opened = {
            "backends": sum(backend.is_open for backend in self.backends.values()),
            "sessions": len(self.sessions),
        }
        return {**opened, "running": running, "waiting": self.waiting(), **self.counts}

    def _asked(self, event: Asked, now: float) -> None:
        known = self.requests.get(event.request_id)
        if known is not None:
            known.client = event.client
            self.counts["repeated"] += 1
            return
        self.counts["asked"] += 1
        request = Request(event.request_id, event.client, event.session)
        self.requests[event.request_id] = request
        if self.is_closing:
            self._fail(request, "draining", "the router is stopping", retry=True)
            return
        session = self._touch(event, now)
        session.requests.add(event.request_id)
        self._place(request, now)
        self.counts["held_back"] += request.request_id in self.unplaced and self._is_any_open()
        if not request.ticket and self.waiting() > self.rules.queue:
            self._leave(request)
            message = f"{self.rules.queue} requests wait already"
            self._fail(request, "full", message, retry=True)

    def _touch(self, event: Asked, now: float) -> Session:
        session = self.sessions.get(event.session)
        if session is None:
            session = self.sessions[event.session] = Session(event.client, now, self.salt)
        session.client = event.client
        session.used_at = now
        self.sessions.move_to_end(event.session)
        return session

    def _place(self, request: Request, now: float, avoid: str = "") -> None:
        session = self.sessions[request.session]
        if session.is_new and self._is_full():
            self.unplaced[request.request_id] = now
            return
        if not session.backend or not self.policy.sticky:
            self._seat(request.session, avoid)
        if not session.backend:
            self.unplaced[request.request_id] = now
            return
        request.backend = session.backend
        self.backends[session.backend].waiting[request.request_id] = None
        self._fill(session.backend)

    def _seat(self, name: str, avoid: str = "") -> None:
        session = self.sessions[name]
        self._unseat(name)
        session.backend = self.policy.choose(avoid) or ""
        if session.backend:
            session.is_new = False
            self.backends[session.backend].sessions.add(name)
            self.backends[session.backend].placed += 1
            self._weigh(session.backend)

    def _is_full(self) -> bool:
        opened = [backend for backend in self.backends.values() if backend.is_open]
        most = self.rules.sessions * len(opened)
        return 0 < most <= sum(len(backend.sessions) for backend in opened)

    def _let_in(self, now: float) -> None:
        """Place what waits for a session to end, the oldest first, while there is room."""
        while self.unplaced and self.rules.sessions and self._is_any_open() and not self._is_full():
            request_id, _ = self.unplaced.popitem(last=False)
            self._place(self.requests[request_id], now)

    def _is_any_open(self) -> bool:
        return any(backend.is_open for backend in self.backends.values())

    def _unseat(self, name: str) -> None:
        session = self.sessions[name]
        backend = self.backends.get(session.backend)
        if backend is not None:
            backend.sessions.discard(name)
            self._weigh(session.backend)
        session.backend = ""

    def _fill(self, name: str) -> None:
        backend = self.backends[name]
        room = 0 if backend.is_held else backend.capacity
        while backend.waiting and len(backend.running) < room:
            request = self.requests[next(iter(backend.waiting))]
            del backend.waiting[request.request_id]
            self._tickets += 1
            request.ticket = f"{self._router_id}.{self._tickets}"
            request.tries += 1
            request.is_missed = False
            backend.running[request.ticket] = request.request_id
            salt = self.sessions[request.session].salt
            self._out.append(Dispatch(name, request.ticket, request.request_id, salt))
        self._weigh(name)

    def _weigh(self, name: str) -> None:
        backend = self.backends[name]
        requests = len(backend.running) + len(backend.waiting)
        self.policy.weigh(name, len(backend.sessions) if self.policy.sticky else requests)

    def _leave(self, request: Request) -> None:
        self.unplaced.pop(request.request_id, None)
        backend = self.backends.get(request.backend)
        if backend is not None:
            backend.waiting.pop(request.request_id, None)
            backend.running.pop(request.ticket, None)
            self._weigh(request.backend)
        request.backend = request.ticket = ""

    def _forget(self, request: Request) -> None:
        del self.requests[request.request_id]
        session = self.sessions.get(request.session)
        if session is not None:
            session.requests.discard(request.request_id)

    def _fail(self, request: Request, code: Any, message: str, *, retry: bool) -> None:
        self.counts["failed"] += 1
        self._forget(request)
        self._out.append(Fail(request.client, request.request_id, code, message, retry))

    def _aborted(self, event: Aborted, now: float) -> None:
        request = self.requests.get(event.request_id)
        if request is None:  # it has had its answer, or is of a time before this router
            self._out.append(Spent(event.client, event.request_id, 0))
            return
        request.client = event.client
        self._abort(request, now, tell=True)

    def _abort(self, request: Request, now: float, *, tell: bool = False) -> None:
        backend, ticket = request.backend, request.ticket
        self._leave(request)
        self._forget(request)
        self.counts["dropped"] += 1
        client = request.client if tell else ""
        if ticket:
            self._stop(backend, ticket, client, request.request_id, now)
        elif client:
            self._out.append(Spent(client, request.request_id, 0))
        self._out.append(Drop(request.request_id))
        if backend:
            self._fill(backend)

    def _stop(self, backend: str, ticket: str, client: str, request_id: str, now: float) -> None:
        self.stopping[ticket] = Stopping(backend, client, request_id, now)
        self._out.append(Stop(backend, ticket))

    def _stopped(self, event: Stopped, now: float) -> None:
        stopping = self.stopping.pop(event.ticket, None)
        if stopping is not None:
            self._tell_spent(stopping, event.tokens)
        elif self._current(event.backend, event.ticket) is not None:
            self._refused(
                Refused(event.backend, event.ticket, "backend_error", ABORTED, retry=True), now
            )

    def _tell_spent(self, stopping: Stopping, tokens: int) -> None:
        if stopping.client:
            self._out.append(Spent(stopping.client, stopping.request_id, tokens))

    def _released(self, event: Released, now: float) -> None:
        session = self.sessions.get(event.session)
        if session is None:
            return
        for request_id in sorted(session.requests):
            self._abort(self.requests[request_id], now)
        if session.backend:
            self._out.append(Forget(session.backend, event.session))
        self._unseat(event.session)
        del self.sessions[event.session]
        self._let_in(now)

    def _client_gone(self, event: ClientGone, now: float) -> None:
        for request in [each for each in self.requests.values() if each.client == event.client]:
            self._abort(request, now)
        for name in [name for name, each in self.sessions.items() if each.client == event.client]:
            self._released(Released(name), now)

    def _backend_up(self, event: BackendUp, now: float) -> None:
        if event.backend not in self.backends:
            former = [name for name, each in self.backends.items() if each.node == event.node]
            self.backends[event.backend] = Backend(event.node, event.capacity, now)
            for name in former:
                self._backend_gone(BackendGone(name, "its node started again"), now)
        else:
            self.backends[event.backend].heard_at = now
        self._out.append(Welcome(event.backend))

    def _backend_opened(self, event: BackendOpened, now: float) -> None:
        backend = self.backends[event.backend]
        if not backend.is_open:
            backend.is_open = True
            self.policy.join(event.backend, backend.capacity)
            self._weigh(event.backend)
            self._place_unplaced(now)

    def _backend_shut(self, event: BackendShut, now: float) -> None:
        backend = self.backends[event.backend]
        backend.is_open = False
        self.policy.leave(event.backend)
        if event.how == "drain":
            return
        moved = list(backend.waiting)
        if event.how == "evict":
            for ticket, request_id in backend.running.items():
                self._stop(event.backend, ticket, "", request_id, now)
            moved = [*backend.running.values(), *moved]
        for name in sorted(backend.sessions):
            self._unseat(name)
        for request_id in moved:
            self._again(self.requests[request_id], backend.node, now)

    def _backend_held(self, event: BackendHeld, _now: float) -> None:
        self.backends[event.backend].is_held = event.held
        self._fill(event.backend)

    def _place_unplaced(self, now: float) -> None:
        waiting = list(self.unplaced)
        self.unplaced.clear()
        for request_id in waiting:
            self._place(self.requests[request_id], now)

    def _backend_alive(self, event: BackendAlive, now: float) -> None:
        backend = self.backends.get(event.backend)
        if backend is None:
            self._out.append(AskHello(event.backend))
            return
        backend.heard_at = now
        self._out.append(Welcome(event.backend))
        held = frozenset(event.held)
        for ticket, request_id in list(backend.running.items()):
            request = self.requests[request_id]
            if request.is_missed and ticket not in held:
                self._again(request, backend.node, now)
            else:
                request.is_missed = ticket not in held

    def _backend_gone(self, event: BackendGone, now: float) -> None:
        backend = self.backends.pop(event.backend, None)
        if backend is None:
            return
        self.policy.leave(event.backend)
        self.counts["lost"] += 1
        opened = [*backend.running.values(), *backend.waiting]
        counts = len(backend.sessions), len(opened)
        self._out.append(Lost(event.backend, backend.node, event.reason, *counts))
        for name in sorted(backend.sessions):
            self._seat(name)
        self._end_stopping(lambda each: each.backend == event.backend)
        for request_id in opened:
            self._again(self.requests[request_id], backend.node, now)

    def _again(self, request: Request, node: str, now: float, avoid: str = "") -> None:
        self._leave(request)
        if request.tries >= TRIES:
            message = f"backend {node} lost it, the second time"
            self._fail(request, "backend_lost", message, retry=True)
            return
        self.counts["retried"] += request.tries
        self._place(request, now, avoid)

    def _end_stopping(self, over: Callable[[Stopping], bool]) -> None:
        """Tell what is known, which is nothing, where no count will come any more."""
        for ticket, stopping in list(self.stopping.items()):
            if over(stopping):
                del self.stopping[ticket]
                self._tell_spent(stopping, 0)

    def _answered(self, event: Answered, _now: float) -> None:
        stopping = self.stopping.pop(event.ticket, None)
        if stopping is not None:  # its answer was on its way already
            self._tell_spent(stopping, event.tokens)
            return
        request = self._current(event.backend, event.ticket)
        if request is None:
            return
        self._leave(request)
        self._forget(request)
        self.counts["delivered"] += 1
        self._out.append(Deliver(request.client, request.request_id, event.backend))
        self._fill(event.backend)

    def _refused(self, event: Refused, now: float) -> None:
        stopping = self.stopping.pop(event.ticket, None)
        if stopping is not None:
            self._tell_spent(stopping, 0)
            return
        request = self._current(event.backend, event.ticket)
        if request is None:
            return
        self._leave(request)
        if event.retry and request.tries < TRIES:
            self.counts["retried"] += 1
            self._unseat(request.session)
            self._place(request, now, avoid=event.backend)
        else:
            self._fail(request, event.code, event.message, retry=event.retry)
        self._fill(event.backend)

    def _current(self, name: str, ticket: str) -> Request | None:
        backend = self.backends.get(name)
        request_id = backend.running.get(ticket) if backend else None
        if request_id is None:
            self.counts["late"] += 1
            return None
        return self.requests[request_id]

    def _closing(self, _event: Closing, _now: float) -> None:
        self.is_closing = True

    def _tick(self, _event: Tick, now: float) -> None:
        for name, backend in list(self.backends.items()):
            silence_s = now - backend.heard_at
            if silence_s > self.rules.lost_after_s:
                self._backend_gone(BackendGone(name, f"not heard for {silence_s:.1f} s"), now)
        self._end_unplaced(now)
        self._end_idle(now)
        self._end_stopping(lambda each: now - each.since >= self.rules.stop_s)

    def _end_unplaced(self, now: float) -> None:
        is_any_open = self._is_any_open()  # then they wait for room, for as long as they like
        for request_id, since in list(self.unplaced.items()):
            if is_any_open:
                self.unplaced[request_id] = now
                continue
            wait_s = now - since
            if wait_s >= self.rules.unplaced_s:
                request = self.requests[request_id]
                self._leave(request)
                message = f"no backend for {wait_s:.1f} s (limit {self.rules.unplaced_s:g} s)"
                self._fail(request, "no_backend", message, retry=True)

    def _end_idle(self, now: float) -> None:
        while self.sessions:
            name, session = next(iter(self.sessions.items()))
            if now - session.used_at < self.rules.idle_s:
                return
            if session.requests:
                session.used_at = now
                self.sessions.move_to_end(name)
            else:
                self._released(Released(name), now)
