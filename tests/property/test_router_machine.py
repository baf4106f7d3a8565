"""The router's rules under any order of events: requests, losses, probes, drains and updates.

A model of the backends holds what the router tells them. What must always be true is checked after
every step; at the end every backend answers, and nothing may be left over.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nodes.inference import events
from nodes.inference.fleet import Rules
from nodes.inference.messages import Pause, Resume, UpdateStep, UpdateWeights
from nodes.inference.placement import TRIES, Placement
from nodes.inference.policies import LeastLoaded, named
from nodes.inference.standing import Standings, Waits

NODES = ("n0", "n1", "n2")
CAPACITY = 2
QUEUE = 6
SESSIONS = st.sampled_from(["s0", "s1", "s2", "s3", "s4"])
PICK = st.integers(0, 1000)


@dataclass(eq=False)
class Server:
    """A backend as it is, whatever the router thinks of it."""

    name: str
    node: str
    version: int
    tickets: dict[str, str] = field(default_factory=dict)  # to requests
    probes: list[str] = field(default_factory=list)
    steps: list[Pause | UpdateWeights | Resume] = field(default_factory=list)
    paused: bool = False
    proven: bool = False


class RouterMachine(RuleBasedStateMachine):
    """Drives standings and placement together."""

    def __init__(self) -> None:
        super().__init__()
        rules = Rules(queue=QUEUE, idle_s=1e6, lost_after_s=1e6, unplaced_s=1e6, stop_s=1e6)
        placement = Placement(named("sticky-least-loaded"), rules, "router")
        waits = Waits(probe_s=20.0, step_s=20.0, repeat_s=4.0)
        self.standings = Standings(placement, waits, "router")
        self.placement = placement
        self.now = 0.0
        self.boots = self.asked = self.published = 0
        self.servers: dict[str, Server] = {}
        self.open: set[str] = set()
        self.dispatched: Counter[str] = Counter()
        self.aborted: set[str] = set()
        self.spent: Counter[str] = Counter()
        self.updates: set[str] = set()
        self.at: dict[str, str] = {}

    def do(self, event: events.Event) -> None:
        for instruction in self.standings.handle(event, self.now):
            self.carry_out(instruction)

    def carry_out(self, told: events.Instruction) -> None:
        match told:
            case events.Dispatch(backend, ticket, request_id):
                self.dispatch(self.servers[backend], ticket, request_id)
            case events.Deliver(_, request_id) | events.Fail(_, request_id):
                self.open.remove(request_id)
            case events.Drop(request_id):
                self.open.remove(request_id)
            case events.Spent(_, request_id):
                self.spent[request_id] += 1
            case events.Stop(backend, ticket):
                self.servers[backend].tickets.pop(ticket, None)
            case events.Probe(backend, ticket):
                self.servers[backend].probes.append(ticket)
                assert len(self.servers[backend].tickets) < CAPACITY
            case events.TellStep(backend, message):
                self.servers[backend].steps.append(message)
            case events.Refuse(backend):
                self.servers[backend].proven = False
            case events.Published(update_id):
                self.updates.remove(update_id)

    def dispatch(self, server: Server, ticket: str, request_id: str) -> None:
        assert request_id in self.open
        assert server.proven, "used before its probe"
        assert not server.steps or isinstance(server.steps[-1], Resume), "used while it pauses"
        assert not server.paused or server.steps, "used while it is paused"
        server.tickets[ticket] = request_id
        self.dispatched[request_id] += 1
        assert len(server.tickets) <= CAPACITY
        assert self.dispatched[request_id] <= TRIES

    def some(self, pick: int) -> Server | None:
        servers = [self.servers[name] for name in sorted(self.servers)]
        return servers[pick % len(servers)] if servers else None

    @initialize(nodes=st.sets(st.sampled_from(NODES)))
    def begin(self, nodes: set[str]) -> None:
        for node in sorted(nodes):
            self.start(node, 0, proven=True)

    @rule(node=st.sampled_from(NODES), version=st.integers(0, 2), proven=st.booleans())
    def start(self, node: str, version: int, proven: bool = False) -> None:
        self.boots += 1
        server = Server(f"{node}.{self.boots}", node, version)
        former = [name for name, each in self.servers.items() if each.node == node]
        self.servers[server.name] = server
        self.do(events.BackendUp(server.name, node, CAPACITY, version))
        for name in former:
            del self.servers[name]
        if proven and server.probes:
            self.prove(server)

    @rule(pick=PICK)
    def die(self, pick: int) -> None:
        server = self.some(pick)
        if server is not None:
            del self.servers[server.name]
            self.do(events.BackendGone(server.name, "died"))

    @rule(session=SESSIONS)
    def ask(self, session: str) -> None:
        self.asked += 1
        name = f"r{self.asked}"
        self.open.add(name)
        self.do(events.Asked("c", name, session))

    @precondition(lambda self: self.open)
    @rule(pick=PICK)
    def abort(self, pick: int) -> None:
        name = sorted(self.open)[pick % len(self.open)]
        self.aborted.add(name)
        self.do(events.Aborted("c", name))

    @rule(session=SESSIONS)
    def release(self, session: str) -> None:
        self.do(events.Released(session))

    @rule(pick=PICK, wrong=st.sampled_from(["", "", "", "", "misaligned"]))
    def answer_probe(self, pick: int, wrong: str) -> None:
        server = self.some(pick)
        if server is not None and server.probes:
            self.prove(server, wrong)

    def prove(self, server: Server, wrong: str = "") -> None:
        ticket = server.probes.pop(0)
        if self.standings.posts[server.name].probe == ticket:
            server.proven = not wrong
        self.do(events.Probed(server.name, ticket, wrong))

    @rule(pick=PICK, fails=st.booleans())
    def answer(self, pick: int, fails: bool) -> None:
        server = self.some(pick)
        if server is None or not server.tickets or server.paused:
            return
        ticket = next(iter(server.tickets))
        del server.tickets[ticket]
        if fails:
            self.do(events.Refused(server.name, ticket, "backend_error", "broke", retry=True))
        else:
            self.do(events.Answered(server.name, ticket, 3))

    @precondition(lambda self: any(server.steps for server in self.servers.values()))
    @rule(pick=PICK, errors=st.lists(st.sampled_from(["", "", "", "no space"]), min_size=1))
    def step(self, pick: int, errors: list[str]) -> None:
        for error in errors:
            told = [each for each in self.servers.values() if each.steps]
            if told:
                self.do_step(told[pick % len(told)], error)

    def do_step(self, server: Server, error: str) -> None:
        message = server.steps.pop(0)
        if not error:
            match message:
                case Pause():
                    server.paused = True
                case UpdateWeights():
                    assert server.paused, "loads while it samples"
                    server.version = message.policy_version
                case Resume():
                    server.paused = False
        step = UpdateStep(message.update_id, message.kind, server.version, error)
        self.do(events.Stepped(server.name, step))

    @rule(source=st.sampled_from(["", "/w"]))
    def publish(self, source: str) -> None:
        self.published += 1
        name = f"u{self.published}"
        self.updates.add(name)
        self.do(events.Publish(name, 10 + self.published, source, "keep", 30.0))

    @rule(node=st.sampled_from(NODES), drained=st.booleans())
    def drain(self, node: str, drained: bool) -> None:
        self.do(events.NodeDrained(node, drained))

    @rule(pick=PICK)
    def beat(self, pick: int) -> None:
        server = self.some(pick)
        if server is not None:
            held = (*server.tickets, *server.probes)
            self.do(events.BackendAlive(server.name, held, server.version))

    @rule(pause=st.floats(0.1, 12.0))
    def wait(self, pause: float) -> None:
        self.now += pause
        self.do(events.Tick())

    @invariant()
    def every_request_is_in_one_place(self) -> None:
        places = Counter(list(self.placement.unplaced))
        for backend in self.placement.backends.values():
            places.update([*backend.waiting, *backend.running.values()])
        assert places == Counter(self.open)
        assert len(self.placement.unplaced) <= len(self.open)

    @invariant()
    def only_backends_with_the_published_weights_are_open(self) -> None:
        weights = self.standings.weights
        for name, post in self.standings.posts.items():
            at = self.placement.backends.get(name)
            assert at is None or not at.is_open or post.state == "open"
            if post.state == "open" and weights is not None:
                assert post.policy_version == weights.policy_version

    @invariant()
    def sessions_stay_where_they_are_while_their_backend_is_open(self) -> None:
        for name, session in self.placement.sessions.items():
            before = self.at.get(name, "")
            at = self.placement.backends.get(before)
            if at is not None and at.is_open and name in at.sessions:
                assert session.backend == before
        self.at = {name: each.backend for name, each in self.placement.sessions.items()}

    @invariant()
    def an_abort_is_told_of_once(self) -> None:
        assert all(count == 1 for count in self.spent.values())
        assert set(self.spent) <= self.aborted

    def teardown(self) -> None:
        """Let everything that is there answer; then nothing may be left over."""
        self.start("n0", 0)
        for node in NODES:
            self.do(events.NodeDrained(node, drained=False))
        for _ in range(60):
            self.now += 8.0
            self.do(events.Tick())
            if "n0" not in {
                post.node for post in self.standings.posts.values() if self.alive(post)
            }:
                self.start("n0", self.wanted())
            for server in list(self.servers.values()):
                self.settle(server)
        assert not self.open, self.standings.posts
        assert not self.updates
        assert not self.standings.update
        for server in self.servers.values():
            held = self.placement.backends.get(server.name)
            assert held is None or not (server.paused or held.is_held)

    def alive(self, post: Any) -> bool:
        return post.state != "refused" and not (post.state == "behind" and not self.source())

    def source(self) -> str:
        return self.standings.weights.source if self.standings.weights is not None else "none"

    def wanted(self) -> int:
        return self.standings.weights.policy_version if self.standings.weights is not None else 0

    def settle(self, server: Server) -> None:
        for _ in range(100):
            if server.name not in self.standings.posts or server.name not in self.servers:
                return
            if server.steps:
                self.do_step(server, "")
            elif server.probes:
                self.prove(server)
            elif server.tickets:
                ticket = next(iter(server.tickets))
                del server.tickets[ticket]
                self.do(events.Answered(server.name, ticket, 1))
            else:
                return


TestRouterMachine = RouterMachine.TestCase
TestRouterMachine.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 80))
def test_new_sessions_are_balanced_within_one(backends: int, sessions: int) -> None:
    policy = LeastLoaded(sticky=True)
    opened = dict.fromkeys(map(str, range(backends)), 0)
    for name in opened:
        policy.join(name, 8)
    for _ in range(sessions):
        chosen = policy.choose()
        assert chosen is not None
        opened[chosen] += 1
        policy.weigh(chosen, opened[chosen])
        assert max(opened.values()) - min(opened.values()) <= 1
