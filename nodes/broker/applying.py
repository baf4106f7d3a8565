"""The broker's copy of the topology that runs: asked to change it, it says what changes, and does.

Job: answer an operator's question, keep the topology before anything goes by it, and hand newer
texts to launchers that say hello with an older one.
Does not know: sockets, processes, or how the rules go by it (`take` is called with what is new).
Invariants: a question is done once, however often it comes. What a launcher has is told by its
hello, so no single message matters.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from engine.errors import RollmqError
from engine.logs import get_logger
from engine.messages import AskNode, LauncherReply, NodeAnswer, NodeHello, Part
from engine.topology import Applied, Plan, Topology, load_text, plan, resolved_yaml
from engine.topology.applied import keep, read
from engine.typed import Mismatch, Text, compile_decoder
from engine.wire import json_buffer

log = get_logger()
KEPT_ANSWERS = 64
MARK, REVISION = "mark", "revision"  # of the text that a launcher goes by, in its figures
WAITING = "waiting"  # in the figures of a launcher that wants to know who was heard
Answer = tuple[NodeAnswer, list[bytes]]


@dataclass(frozen=True, slots=True)
class ApplyAsked:
    """Change what runs into this topology, as far as that can be done live; or only say how.

    file: what the operator calls it.
    """

    file: Text
    topology: str
    dry_run: bool


_READ = compile_decoder(ApplyAsked)


class Applying:
    """What runs, under its revision; `take` makes the broker itself go by something newer."""

    def __init__(
        self, topology: Topology, applied: Applied, take: Callable[[Topology], None]
    ) -> None:
        self.topology = topology
        self._applied = applied
        self._take = take
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def ask(self, message: AskNode, body: list[Any]) -> Answer:
        """Return the answer to a question, after doing what it asks for."""
        found = self._answers.get(message.request_id)
        if found is None:
            found = self._answers[message.request_id] = self._answer(message, body)
        while len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)
        return found

    def reply(
        self, hello: NodeHello, broker_id: str, heard: Callable[[], tuple[Part, ...]]
    ) -> tuple[LauncherReply, list[bytes]]:
        """Return the answer to a launcher: what it should go by, if its hello says another."""
        found = heard() if WAITING in hello.figures else ()
        if hello.figures.get(MARK) == self._applied.mark:
            return LauncherReply(broker_id, self._applied.revision, found), []
        buffer, text = json_buffer("topology", self._applied.text)
        return LauncherReply(broker_id, self._applied.revision, found, (buffer,)), [text]

    def figures(self) -> dict[str, Any]:
        """Return what the status says of it."""
        return {"topology": {REVISION: self._applied.revision, MARK: self._applied.mark}}

    def _answer(self, message: AskNode, body: list[Any]) -> Answer:
        try:
            asked = _READ(orjson.loads(bytes(body[0])))
            answer = self._apply(asked)
        except (Mismatch, orjson.JSONDecodeError, RollmqError, OSError) as wrong:
            why = str(wrong)[:20_000]
            return NodeAnswer(message.request_id, "refused", why), []
        buffer, text = json_buffer("answer", answer)
        return NodeAnswer(message.request_id, "done", buffers=(buffer,)), [text]

    def _apply(self, asked: ApplyAsked) -> dict[str, Any]:
        wanted = load_text(asked.topology, self.topology.beside / "topology.yaml", asked.file)
        planned = plan(self.topology, wanted)
        text = resolved_yaml(planned.merged)
        checked = read(Applied(self._applied.revision, text), self.topology)
        if not asked.dry_run and text != self._applied.text:
            self._applied = keep(self.topology, text)
            self.topology = checked
            self._take(checked)
            log.info("topology applied", revision=self._applied.revision, left=len(planned.left))
        return self._told(planned, dry_run=asked.dry_run)

    def _told(self, planned: Plan, *, dry_run: bool) -> dict[str, Any]:
        return {
            "revision": self._applied.revision,
            "dry_run": dry_run,
            "changes": [
                {"what": change.what, "was": change.was, "now": change.now, "live": change.live}
                for change in planned.changes
            ],
        }
