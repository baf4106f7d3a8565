"""Which backends may be used, and with which weights.

    behind   it holds other weights than were published, and is brought to them before it is used
    probing  its next small completion decides
    open     new sessions are placed on it
    sick     it failed several requests in a row: no new sessions until a probe succeeds
    refused  unused until its next hello: its probe was answered wrongly, it did not resume after an
             update, or an operator removed it

A backend that an operator drains keeps its state; it only gets no new session.

Job: decide, around `placement`, which backends are open; drive probes and weight updates.
Does not know: sockets, frames or clocks; `now` is an argument, in seconds.
Invariants: nothing is placed on a backend that was not probed since its hello and since it failed.
After a publish, no backend is open that holds other weights. One update runs at a time over all
backends, and is reported by its deadline; a backend that joins meanwhile, or is left behind, is
brought up to date by itself, with a delay that doubles. A caller's fault (`invalid`, `too_long`) is
never counted against a backend.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from . import events
from .events import Event, Instruction, Publish, Published, Shutting
from .placement import Placement
from .updates import Deadlines, Update, Weights

State = Literal["behind", "probing", "open", "sick", "refused"]
Rule = Callable[[Any, float], None]
FAILURES = 3  # in a row
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
REMOVED = "an operator removed it"


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds: for the answer to a probe, for a later step of an update, between repeats."""

    probe_s: float
    step_s: float
    repeat_s: float


@dataclass(slots=True)
class Post:
    """What is known of one boot of a backend."""

    node: str
    policy_version: int
    state: State = "probing"
    reason: str = ""
    is_draining: bool = False
    failures: int = 0
    probe: str = ""  # the ticket of the one under way
    act_at: float = 0.0  # the next probe or catching up; of a probe under way, its deadline
    delay_s: float = FIRST_DELAY_S
    figures: dict[str, float] = field(default_factory=dict)
    served_tokens: list[int] = field(default_factory=lambda: [0, 0])  # of prompts, and cached


class Standings:
    """The standing of every backend, around the placement of what is open on them."""

    def __init__(
        self,
        placement: Placement,
        waits: Waits,
        router_id: str,
        weights: Weights | None = None,
        *,
        drained: frozenset[str] = frozenset(),
        removed: frozenset[str] = frozenset(),
        share_prefix: bool = False,
    ) -> None:
        self.placement = placement
        self.posts: dict[str, Post] = {}
        self.weights = weights
        self.update: Update | None = None
        self.drained = set(drained)
        self.removed = set(removed)
        self._share_prefix = share_prefix
        self._waits = waits
        self._router_id = router_id
        self._probes = 0
        self._catching: dict[str, Update] = {}
        self._stopped: Update | None = None  # the last that was seen paused
        self._asked: tuple[Publish, float] | None = None  # of the update under way, and its end
        self._postponed: tuple[Publish, float] | None = None  # until a backend is there
        self._out: list[Instruction] = []
        self._rules: dict[type, Rule] = {
            events.BackendUp: self._up,
            events.BackendAlive: self._alive,
            events.BackendDraining: self._draining,
            events.BackendGone: self._gone,
            events.Answered: self._answered,
            events.Refused: self._refused,
            events.Probed: self._probed,
            events.Stepped: self._stepped,
            events.Publish: self._publish,
            events.WeightsPut: self._weights_put,
            events.NodeDrained: self._node_drained,
            events.NodeRemoved: self._node_removed,
            events.Tick: self._tick,
        }
        if weights is not None:
            self._salt(weights.policy_version)

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Return what `event` leads to, in the order in which it has to be done."""
        rule = self._rules.get(event.__class__)
        if rule is None:
            self._place(event, now)
        else:
            rule(event, now)
        out, self._out = self._out, []
        return out

    def served(self, backend: str, prompt_tokens: int, cached_tokens: int) -> None:
        """Count a completion for the hit rate of its backend."""
        post = self.posts.get(backend)
        if post is not None:
            post.served_tokens[0] += prompt_tokens
            post.served_tokens[1] += cached_tokens

    def is_probe(self, ticket: str) -> bool:
        """Return whether a ticket is one of this router's probes."""
        return ticket.startswith(f"{self._router_id}.probe-")

    def _place(self, event: Event, now: float) -> None:
        for instruction in self.placement.handle(event, now):
            if isinstance(instruction, events.Lost):
                self._forget(instruction.backend, now)
            self._out.append(instruction)

    def _up(self, event: events.BackendUp, now: float) -> None:
        post = self.posts.get(event.backend)
        if post is not None and post.state != "refused":
            self._place(event, now)
            return
        self.posts[event.backend] = post = Post(event.node, event.policy_version)
        if event.node in self.removed:
            self._out.append(events.Welcome(event.backend))
            self._refuse(event.backend, post, REMOVED, now)
            return
        self._place(event, now)
        if self._postponed is not None:
            (asked, until), self._postponed = self._postponed, None
            self._publish(replace(asked, timeout_s=max(0.0, until - now)), now)
        else:
            self._examine(event.backend, post, now)

    def _examine(self, backend: str, post: Post, now: float) -> None:
        """Bring a backend to the published weights, then probe it."""
        if self.update is not None:
            self._enter(backend, post, "behind", "an update is under way", now)
            return
        if self.weights is None or post.policy_version == self.weights.policy_version:
            self._enter(backend, post, "probing", "", now)
            self._probe(backend, post, now)
            return
        wanted = self.weights
        why = f"holds version {post.policy_version}, published is {wanted.policy_version}"
        if not wanted.source:
            why += ", whose weights the trainer puts there itself"
        self._enter(backend, post, "behind", why, now)
        if wanted.source:
            self._catch_up(backend, post, wanted, now)

    def _catch_up(self, backend: str, post: Post, wanted: Weights, now: float) -> None:
        self._probes += 1
        own = replace(wanted, update_id=f"{self._router_id}.{self._probes}")
        held = {backend: post.policy_version}
        update = self._catching[backend] = Update(own, "keep", None, held, self._deadlines(None))
        self._place(events.BackendHeld(backend, held=True), now)
        self._out += update.begin(now)

    def _deadlines(self, all_s: float | None) -> Deadlines:
        """Share out an update's time: going back and resuming have to fit into it too."""
        step_s = self._waits.step_s
        if all_s is None:
            return Deadlines(step_s, step_s, self._waits.repeat_s)
        step_s = min(step_s, all_s / 4)
        return Deadlines(all_s - 2 * step_s, step_s, self._waits.repeat_s)

    def _probe(self, backend: str, post: Post, now: float) -> None:
        at = self.placement.backends[backend]
        if len(at.running) >= at.capacity:
            post.act_at = now + post.delay_s
            return
        self._probes += 1
        post.probe = f"{self._router_id}.probe-{self._probes}"
        post.act_at = now + self._waits.probe_s
        self._out.append(events.Probe(backend, post.probe))

    def _probed(self, event: events.Probed, now: float) -> None:
        post = self.posts.get(event.backend)
        if post is None or post.probe != event.ticket:
            return
        post.probe = ""
        if event.wrong:
            self._refuse(event.backend, post, event.wrong, now)
            return
        post.delay_s, post.failures = FIRST_DELAY_S, 0
        self._enter(event.backend, post, "open", "", now)

    def _refuse(self, backend: str, post: Post, reason: str, now: float) -> None:
        self._place(events.BackendGone(backend, reason), now)
        self.posts[backend] = post
        post.state, post.reason, post.probe = "refused", reason, ""
        self._out.append(events.Refuse(backend, post.node, reason))

    def _enter(
        self,
        backend: str,
        post: Post,
        state: State,
        reason: str,
        now: float,
        how: Shutting = "move",
    ) -> None:
        before, post.state, post.reason = post.state, state, reason
        if state == "open":
            if self.weights is None:
                self._salt(post.policy_version)
            if not self._is_drained(post):
                self._place(events.BackendOpened(backend), now)
        elif before == "open":
            self._place(events.BackendShut(backend, how), now)
        if before != state:
            self._out.append(events.Standing(backend, post.node, state, reason))

    def _salt(self, version: int) -> None:
        known = [post.policy_version for post in self.posts.values() if post.state == "open"]
        update_id = self.weights.update_id if self.weights is not None else ""
        newest = version if self.weights is not None else max([version, *known])
        salt = f"{newest}.{update_id}" if update_id else str(newest)
        self.placement.salt = "" if self._share_prefix else salt[:200]

    def _is_drained(self, post: Post) -> bool:
        return post.is_draining or post.node in self.drained

    def _alive(self, event: events.BackendAlive, now: float) -> None:
        post = self.posts.get(event.backend)
        if post is None or post.state == "refused":
            known = post is not None
            self._out.append((events.Welcome if known else events.AskHello)(event.backend))
            return
        post.figures = event.figures or {}
        self._place(event, now)
        if event.policy_version != post.policy_version and not self._is_updating(event.backend):
            post.policy_version = event.policy_version
            if self.weights is not None:
                self._leave_behind(event.backend, post, "its weights have changed", now)
            elif post.state == "open":
                self._salt(post.policy_version)

    def _is_updating(self, backend: str) -> bool:
        in_all = self.update is not None and backend in self.update.members
        return in_all or backend in self._catching

    def _leave_behind(self, backend: str, post: Post, reason: str, now: float) -> None:
        """Stop using a backend until it has caught up; what runs there goes elsewhere."""
        post.probe = ""
        self._enter(backend, post, "behind", reason, now, "evict")
        post.act_at = now + post.delay_s
        post.delay_s = min(LONGEST_DELAY_S, 2 * post.delay_s)

    def _draining(self, event: events.BackendDraining, now: float) -> None:
        post = self.posts.get(event.backend)
        if post is not None and post.state != "refused":
            post.is_draining = True
            self._place(events.BackendShut(event.backend, "drain"), now)

    def _node_drained(self, event: events.NodeDrained, now: float) -> None:
        (self.drained.add if event.drained else self.drained.discard)(event.node)
        for backend, post in list(self.posts.items()):
            if post.node == event.node and post.state == "open":
                self._enter(backend, post, "open", "", now)
                if event.drained:
                    self._place(events.BackendShut(backend, "drain"), now)

    def _node_removed(self, event: events.NodeRemoved, now: float) -> None:
        if not event.removed:
            self.removed.discard(event.node)
            for backend, post in list(self.posts.items()):
                if post.node == event.node and post.state == "refused":
                    del self.posts[backend]  # its next heartbeat is answered by a call for a hello
            return
        self.removed.add(event.node)
        for backend, post in list(self.posts.items()):
            if post.node == event.node and post.state != "refused":
                self._refuse(backend, post, REMOVED, now)

    def _gone(self, event: events.BackendGone, now: float) -> None:
        self._place(event, now)
        self._forget(event.backend, now)

    def _forget(self, backend: str, now: float) -> None:
        self.posts.pop(backend, None)
        self._catching.pop(backend, None)
        if self.update is not None:
            self._out += self.update.gone(backend, now)
            self._finish(now)

    def _answered(self, event: events.Answered, now: float) -> None:
        post = self.posts.get(event.backend)
        if post is not None:
            post.failures = 0
        self._place(event, now)

    def _refused(self, event: events.Refused, now: float) -> None:
        post = self.posts.get(event.backend)
        if self.is_probe(event.ticket):
            if post is not None and post.probe == event.ticket:
                self._probe_failed(event, post, now)
            return
        self._place(event, now)
        if post is not None and event.code == "backend_error":
            post.failures += 1
            if post.failures >= FAILURES and post.state == "open":
                reason = f"{FAILURES} requests failed in a row, the last with: {event.message}"
                self._sicken(event.backend, post, reason, now)

    def _probe_failed(self, event: events.Refused, post: Post, now: float) -> None:
        post.probe = ""
        reason = f"its probe failed: {event.code}: {event.message}"
        if event.code in {"invalid", "too_long"}:
            self._refuse(event.backend, post, reason, now)
        else:
            self._sicken(event.backend, post, reason, now)

    def _sicken(self, backend: str, post: Post, reason: str, now: float) -> None:
        self._enter(backend, post, "sick", reason[:1000], now)
        post.act_at = now + post.delay_s
        post.delay_s = min(LONGEST_DELAY_S, 2 * post.delay_s)

    def _tick(self, event: events.Tick, now: float) -> None:
        self._place(event, now)
        for backend, post in list(self.posts.items()):
            if backend in self.posts and now >= post.act_at and not self._is_updating(backend):
                self._act(backend, post, now)
        for backend, update in list(self._catching.items()):
            self._out += update.tick(now)
            self._caught_up(backend, now)
        if self.update is not None:
            self._out += self.update.tick(now)
            self._finish(now)
        if self._postponed is not None and now >= self._postponed[1]:
            (asked, _), self._postponed = self._postponed, None
            weights = Weights(asked.policy_version, asked.source, asked.update_id)
            self._tell_failed(weights, "no backend is there")

    def _act(self, backend: str, post: Post, now: float) -> None:
        if post.state == "behind":
            self._examine(backend, post, now)
        elif post.state in {"probing", "sick"} and post.probe:
            post.probe = ""
            self._sicken(backend, post, f"no answer to its probe in {self._waits.probe_s:g} s", now)
        elif post.state in {"probing", "sick"}:
            self._probe(backend, post, now)

    def _publish(self, event: Publish, now: float) -> None:
        weights = Weights(event.policy_version, event.source, event.update_id)
        held = {
            backend: post.policy_version
            for backend, post in self.posts.items()
            if post.state != "refused"
        }
        if self.update is not None or self._postponed is not None:
            self._tell_failed(weights, "another update is under way")
            return
        if not held:
            self._postponed = event, now + event.timeout_s
            return
        for backend in held:
            self._catching.pop(backend, None)
            self.posts[backend].probe = ""
            self._place(events.BackendHeld(backend, held=True), now)
        self._asked = event, now + event.timeout_s
        deadlines = self._deadlines(event.timeout_s)
        self.update = Update(weights, event.mode, self.weights, held, deadlines, stops=event.stops)
        self._out += self.update.begin(now)
        self._finish(now)

    def is_paused(self, update_id: str) -> bool:
        """Return whether an update waits for the trainer to put the weights there."""
        update = self.update
        return (
            update is not None
            and update.phase == "paused"
            and update.weights.update_id == update_id
        )

    def _weights_put(self, event: events.WeightsPut, now: float) -> None:
        if self.is_paused(event.update_id):
            assert self.update is not None
            self._out += self.update.put(now, event.error)
            self._finish(now)

    def _stepped(self, event: events.Stepped, now: float) -> None:
        catching = self._catching.get(event.backend)
        if catching is not None:
            self._out += catching.answered(event.backend, event.step, now)
            self._caught_up(event.backend, now)
        if self.update is not None:
            self._out += self.update.answered(event.backend, event.step, now)
            self._finish(now)

    def _caught_up(self, backend: str, now: float) -> None:
        update = self._catching.get(backend)
        if update is not None and update.phase == "done":
            del self._catching[backend]
            self._settle(backend, update, now)

    def _finish(self, now: float) -> None:
        """Take note of how the update over all backends ended, if it has."""
        update = self.update
        if update is not None and update.phase == "paused" and self._stopped is not update:
            self._stopped = update
            self._out.append(events.AllPaused(update.weights.update_id))
        if update is None or update.phase != "done":
            return
        self.update = None
        if not update.members and self._stopped is update:
            self._tell_failed(update.weights, "every backend was lost in the update")
            return
        if not update.members:  # all were lost; whoever comes back goes on with it
            self._postponed = self._asked
            return
        if update.holds:
            self.weights = update.weights
            self._salt(update.weights.policy_version)
        holders, failed = [], {}
        for backend, member in update.members.items():
            node = self.posts[backend].node
            if member.policy_version == update.weights.policy_version and member.resumed:
                holders.append(node)
            if member.failed:
                failed[node] = member.failed
        self._tell_published(update.weights, done=update.holds, holders=holders, failed=failed)
        for backend in list(update.members):
            self._settle(backend, update, now)
        for backend, post in list(self.posts.items()):
            if backend not in update.members and post.state != "refused":
                self._examine(backend, post, now)

    def _tell_failed(self, weights: Weights, why: str) -> None:
        self._tell_published(weights, done=False, holders=(), failed={"": why})

    def _tell_published(
        self, weights: Weights, *, done: bool, holders: Any, failed: dict[str, str]
    ) -> None:
        version, source = weights.policy_version, weights.source
        self._out.append(
            Published(weights.update_id, version, source, done, tuple(sorted(holders)), failed)
        )

    def _settle(self, backend: str, update: Update, now: float) -> None:
        """Go on with a backend after an update, as far as it holds the right weights."""
        post, member = self.posts[backend], update.members[backend]
        post.policy_version = member.policy_version
        if not member.resumed:
            self._refuse(backend, post, member.failed or "it did not resume", now)
            return
        self._place(events.BackendHeld(backend, held=False), now)
        wanted = self.weights
        if wanted is not None and wanted.policy_version != post.policy_version:
            reason = member.failed or "it does not hold the published weights"
            self._leave_behind(backend, post, reason, now)
        elif post.state != "open":
            post.act_at = now
            self._examine(backend, post, now)
