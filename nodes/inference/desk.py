"""Where the router answers what clients ask: publish, and backends listed, added, drained, removed.

Job: read a question, have it done, and answer it once it is.
Does not know: sockets; what comes out are answers to send.
Invariants: a question is done once, however often it comes; its answer is kept for repeats. What
has to survive the router is in the roster before it is answered.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import orjson
from msgspec.structs import replace

from engine.errors import RollmqError
from engine.logs import get_logger
from engine.messages import Answered, Asked, Part
from engine.records import BackendState, Published
from engine.supervisor import BACKEND_MODULES
from engine.typed import AtLeast, Count, Mismatch, Text, compile_decoder
from engine.wire import json_buffer

from . import events
from .children import Children
from .messages import PauseMode
from .progress import Progress
from .roster import Added, PublishedWeights, Roster
from .standing import Standings

KEPT_ANSWERS = 256
OPERATORS_ONLY = "a trainer's key may publish weights and list backends; others need an operator's"
Reply = tuple[Answered, list[bytes]]
Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class PublishAsked:
    """Bring every backend to other weights."""

    ask: Literal["publish"]
    policy_version: Count
    source: Text
    mode: PauseMode
    timeout_s: Annotated[float, AtLeast(0)]


@dataclass(frozen=True, slots=True)
class PauseAsked:
    """Pause every backend for weights that the trainer puts there itself."""

    ask: Literal["pause"]
    policy_version: Count
    mode: PauseMode
    timeout_s: Annotated[float, AtLeast(0)]


@dataclass(frozen=True, slots=True)
class PutAsked:
    """The weights of a paused update are there; or an error says why they are not."""

    ask: Literal["put"]
    update_id: Text
    error: Text


@dataclass(frozen=True, slots=True)
class ListAsked:
    """Say how every backend is."""

    ask: Literal["list"]


@dataclass(frozen=True, slots=True)
class AddAsked:
    """Start a backend and use it; `options` is JSON text."""

    ask: Literal["add"]
    name: Text
    kind: Text
    capacity: Annotated[int, AtLeast(1)]
    options: Text


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """Place no new session on a backend, or place them again."""

    ask: Literal["drain"]
    name: Text
    undo: bool


@dataclass(frozen=True, slots=True)
class RemoveAsked:
    """Use a backend no more."""

    ask: Literal["remove"]
    name: Text


Question = PublishAsked | PauseAsked | PutAsked | ListAsked | AddAsked | DrainAsked | RemoveAsked
_READ: dict[str, Callable[[Any], Question]] = {
    "publish": compile_decoder(PublishAsked),
    "pause": compile_decoder(PauseAsked),
    "put": compile_decoder(PutAsked),
    "list": compile_decoder(ListAsked),
    "add": compile_decoder(AddAsked),
    "drain": compile_decoder(DrainAsked),
    "remove": compile_decoder(RemoveAsked),
}


class _No(Exception):  # noqa: N818 - never leaves this module
    """Why a question is refused."""


class Desk:
    """Answers clients; `do` hands an event to the standings and carries out what follows."""

    def __init__(
        self,
        standings: Standings,
        roster: Roster,
        children: Children,
        do: Callable[[events.Event], None],
    ) -> None:
        self._standings = standings
        self._roster = roster
        self._children = children
        self._do = do
        self._progress = Progress()
        self._answers: OrderedDict[str, Reply] = OrderedDict()
        self._open: dict[str, str] = {}  # who asked what is not answered yet, by request
        self._waits: dict[str, str] = {}  # the request that waits for an update

    def asked(self, message: Asked, body: list[bytes], now: float) -> list[Reply]:
        """Return the answer to a question, or nothing yet."""
        if message.request_id in self._open:
            self._open[message.request_id] = message.client_id
            return []
        kept = self._answers.get(message.request_id)
        if kept is not None:
            return [(replace(kept[0], client_id=message.client_id), kept[1])]
        try:
            question = read_question(body[0])
            if isinstance(question, PublishAsked | PauseAsked | PutAsked):
                self._update(message, question)
                return []
            if message.role == "trainer" and not isinstance(question, ListAsked):
                return [self._refuse(message.client_id, message.request_id, OPERATORS_ONLY)]
            self._change(question, now)
        except (_No, RollmqError, OSError) as wrong:
            return [self._refuse(message.client_id, message.request_id, str(wrong))]
        return [self._done(message.client_id, message.request_id, self.states())]

    def paused(self, update_id: str) -> list[Reply]:
        """Return the answer to whoever asked for the pause: the weights can be put there."""
        request_id = self._waits.pop(update_id, "")
        client_id = self._open.pop(request_id, "")
        return [self._done(client_id, request_id, {"update_id": update_id})] if client_id else []

    def published(self, ended: events.Published) -> list[Reply]:
        """Return the answer to whoever asked for the update that has ended."""
        if ended.done:
            weights = PublishedWeights(ended.policy_version, ended.source, ended.update_id)
            try:
                self._roster.change(weights=weights)
            except OSError as wrong:
                get_logger().critical("published weights not kept", error=str(wrong))
        request_id = self._waits.pop(ended.update_id, "")
        client_id = self._open.pop(request_id, "")
        if not client_id:
            return []
        if ended.done:
            told = Published(ended.policy_version, ended.backends, ended.failed)
            return [self._done(client_id, request_id, told)]
        causes = "; ".join(f"{node}: {why}" if node else why for node, why in ended.failed.items())
        why = f"version {ended.policy_version} is not in use: {causes or 'no backend is left'}"
        return [self._refuse(client_id, request_id, why)]

    def states(self) -> list[BackendState]:
        """Return how every backend is, also those that are away."""
        standings, found = self._standings, {}
        added = {each.node for each in self._roster.kept.added}
        for backend, post in standings.posts.items():
            found[post.node] = self._state(backend, post.node in added)
        for node in self._roster.nodes():
            if node not in found:
                drained = node in standings.drained
                away = "removed" if node in standings.removed else "away"
                counts = (0, 0, 0, 0, 0)
                found[node] = BackendState(node, away, "", *counts, drained, node in added, {})
        return sorted(found.values(), key=lambda state: state.name)

    def parts(self, now: float) -> tuple[Part, ...]:
        """Return the same for status, with how long each was seen to make no progress."""
        return tuple([_part(state, self._progress.look(state, now)) for state in self.states()])

    def _state(self, backend: str, added: bool) -> BackendState:  # noqa: FBT001 - a field's value
        post = self._standings.posts[backend]
        at = self._standings.placement.backends.get(backend)
        counts = (at.capacity, len(at.sessions), len(at.running), len(at.waiting)) if at else ()
        is_removed = post.node in self._standings.removed
        prompt, cached = post.served_tokens
        counted = {"hit_rate": cached / prompt if prompt else 0.0, "placed": at.placed if at else 0}
        counted["served_tokens"] = prompt
        return BackendState(
            post.node,
            "removed" if is_removed else post.state,
            post.reason,
            post.policy_version,
            *(counts or (0, 0, 0, 0)),
            draining=post.is_draining or post.node in self._standings.drained,
            added=added,
            figures={**post.figures, **counted},
        )

    def _update(self, message: Asked, question: PublishAsked | PauseAsked | PutAsked) -> None:
        """Begin an update, or go on with one that is paused; its answer comes later."""
        request_id = message.request_id
        match question:
            case PublishAsked(_, version, source, mode, timeout_s):
                update_id = request_id
                event: events.Event = events.Publish(request_id, version, source, mode, timeout_s)
            case PauseAsked(_, version, mode, timeout_s):
                update_id = request_id
                event = events.Publish(request_id, version, "", mode, timeout_s, stops=True)
            case PutAsked(_, update_id, error):
                if not self._standings.is_paused(update_id):
                    raise _No(f"no update {update_id!r} is paused; its time is over, or it is done")
                event = events.WeightsPut(update_id, error)
        self._open[request_id] = message.client_id
        self._waits[update_id] = request_id
        self._do(event)

    def _change(self, question: Question, now: float) -> None:
        match question:
            case AddAsked():
                self._add(question, now)
            case DrainAsked(_, name, undo):
                node = self._node(name)
                self._do(events.NodeDrained(node, not undo))
                self._keep_names()
            case RemoveAsked(_, name):
                self._remove(name, now)

    def _add(self, question: AddAsked, now: float) -> None:
        standings = self._standings
        if question.name in standings.removed or f"{question.name}-0" in standings.removed:
            node = question.name if question.name in standings.removed else f"{question.name}-0"
            self._do(events.NodeRemoved(node, removed=False))
            self._keep_names()
            return
        if question.kind not in BACKEND_MODULES:
            raise _No(f"no kind {question.kind!r}; there are {', '.join(BACKEND_MODULES)}")
        name = question.name or self._roster.fresh_name()
        if self._roster.find(name) is not None:
            raise _No(f"{name!r} is there already")
        added = Added(name, question.kind, question.capacity, question.options)
        if self._children.is_stopping(added.node):
            raise _No(f"{added.node} is still stopping")
        self._roster.add(added)
        self._children.start(added, self._roster.file(added), now)

    def _remove(self, name: str, now: float) -> None:
        node, added = self._node(name), self._roster.find(name)
        self._do(events.NodeRemoved(node, removed=True))
        if added is not None:
            self._children.stop(node, now)
            self._standings.removed.discard(node)
            self._standings.drained.discard(node)
            rest = tuple(each for each in self._roster.kept.added if each != added)
            self._roster.change(added=rest)
        self._keep_names()

    def _keep_names(self) -> None:
        drained, removed = sorted(self._standings.drained), sorted(self._standings.removed)
        self._roster.change(drained=tuple(drained), removed=tuple(removed))

    def _node(self, name: str) -> str:
        nodes, added = self._roster.nodes(), self._roster.find(name)
        if added is not None:
            return added.node
        if name not in nodes:
            raise _No(f"no backend {name!r}; there are {', '.join(nodes) or 'none'}")
        return name

    def _done(self, client_id: str, request_id: str, value: Any) -> Reply:
        buffer, text = json_buffer("answer", value)
        answer = Answered(client_id, request_id, "done", buffers=(buffer,))
        return self._remember(request_id, (answer, [text]))

    def _refuse(self, client_id: str, request_id: str, why: str) -> Reply:
        answer = Answered(client_id, request_id, "refused", why[:20_000])
        return self._remember(request_id, (answer, []))

    def _remember(self, request_id: str, reply: Reply) -> Reply:
        self._answers[request_id] = reply
        while len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)
        return reply


def read_question(text: bytes) -> Question:
    """Return a client's question.

    Raises: _No naming what is wrong with it.
    """
    try:
        value = orjson.loads(text)
        if value.__class__ is not dict or value.get("ask") not in _READ:
            raise _No(f"expected one of {', '.join(_READ)} under `ask`")
        if value["ask"] == "add":
            if value.get("options").__class__ is not dict:
                raise _No("options: expected an object")
            value["options"] = orjson.dumps(value["options"]).decode()
        return _READ[value["ask"]](value)
    except (orjson.JSONDecodeError, Mismatch) as wrong:
        raise _No(str(wrong)) from None


def _part(state: BackendState, stalled_s: float) -> Part:
    word = f"{state.state}, draining" if state.draining else state.state
    counts = {
        "sessions": float(state.sessions),
        "running": float(state.running),
        "waiting": float(state.waiting),
        "capacity": float(state.capacity),
        "tokens": state.figures.get("tokens", 0.0),
        "kv_use": state.figures.get("kv_use", 0.0),
        "stalled_s": stalled_s,
        "policy_version": float(state.policy_version),
        "hit_rate": state.figures.get("hit_rate", 0.0),
    }
    return Part(state.name, word, counts)
