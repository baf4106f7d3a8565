"""The agent loop: the model writes, tools answer, until the model has nothing more to call.

Job: turns within limits, each limit with its outcome.
Does not know: which model, template or tools; who scores.
Invariants: every completion that arrived is in the conversation, whatever happens next. The session
is released on every path. What an update of the weights aborted goes on where it stopped, in the
same turn. A BoundaryError is never an outcome, and a conversation in which the model never had a
turn is a BoundaryError: there is nothing that it could be rewarded for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.errors import BoundaryError
from engine.messages.worker import EarlyOutcome

from ..tasks import Context, Generation, Output, Sampling
from ..tracing.attempts import span
from .conversation import Conversation
from .records import Call, Message
from .template import Template
from .tools import Tool, Toolbox

RESUMES = 16  # of one turn that is aborted again and again
CUT = "Your last message was cut off because it was too long. Say it in fewer words."

Limit = Literal["", "turns", "turn_tokens", "tokens", "context", "wall"]
Reply = Callable[[Conversation], Awaitable[Sequence[Message]]]


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a conversation may go.

    turns: of the model. turn_tokens: sampled in one turn. tokens: sampled in all. context_tokens:
    prompt and completion together; at most what the backends hold. wall_s: seconds in all, less
    than the stage's timeout_s. goes_on_when_cut: a turn over turn_tokens is closed, and the model
    is told, instead of being the last.
    """

    turns: int = 16
    turn_tokens: int = 1024
    tokens: int = 16_384
    context_tokens: int = 8192
    wall_s: float = 600.0
    goes_on_when_cut: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """How a conversation ended; `limit` is what ended it early, or empty."""

    conversation: Conversation
    limit: Limit

    @property
    def outcome(self) -> EarlyOutcome | None:
        """The rollout's early outcome, None if the model finished by itself."""
        if not self.limit:
            return None
        return "agent_timeout" if self.limit == "wall" else "truncated"

    @property
    def text(self) -> str:
        """What the model said last, without thinking and calls; empty if it never did."""
        spoken = [each.text for each in self.conversation.messages if each.role == "assistant"]
        return spoken[-1] if spoken else ""

    def output(self, **data: Any) -> Output:
        """Return what the run stage leaves; `data` is added to its JSON."""
        talk = self.conversation
        return Output(
            data={
                "turns": talk.turns,
                "segments": talk.segments(),
                "limit": self.limit,
                "text": self.text,
                **data,
            },
            trajectory=talk.trajectory(),
            arrays={"segments": talk.segment_array()},
            outcome=self.outcome,
        )


async def converse(
    context: Context,
    template: Template,
    tools: Sequence[Tool],
    limits: Limits,
    messages: Sequence[Message],
    *,
    sampling: Sampling | None = None,
    reply: Reply | None = None,
) -> Result:
    """Let the model talk and call tools until it is done or a limit is reached.

    `sampling` says how; its max_tokens and stop_token_ids are set here. `reply` is asked after a
    turn without tool calls what the user says next; nothing ends the conversation.

    Raises: BoundaryError if a backend or what a tool stands on fails, or if a limit leaves the
    model no turn at all; ValueError for bad tools.
    """
    box = Toolbox(tools)
    talk = Conversation(template, messages, box.specs)
    session = f"{context.rollout_id}.{context.attempt}"
    how = replace(sampling or Sampling(), stop_token_ids=template.stop_token_ids)
    agent = _Agent(context, talk, box, limits, session, how, reply)
    limit: Limit = "wall"
    deadline = asyncio.timeout(limits.wall_s)
    try:
        async with deadline:
            limit = await agent.run()
    except TimeoutError:
        if not deadline.expired():
            raise
        if not agent.spent:
            raise BoundaryError("backend", f"no completion in {limits.wall_s:g} s") from None
    finally:
        await context.model.release(session)
    return Result(talk, limit)


@dataclass(slots=True)
class _Agent:
    context: Context
    talk: Conversation
    box: Toolbox
    limits: Limits
    session: str
    how: Sampling
    reply: Reply | None
    spent: int = 0

    async def run(self) -> Limit:
        for _ in range(self.limits.turns):
            room, narrowest = self._room()
            if room < 1:
                return self._ended(narrowest)
            cut = await self._turn(room, narrowest)
            said = self.talk.said()
            if cut and not (self.limits.goes_on_when_cut and cut == "turn_tokens"):
                return cut
            heard = await self._heard(said, is_cut=bool(cut))
            if not heard:
                return ""
            self.talk.say(heard)
        return "turns"

    def _ended(self, limit: Limit) -> Limit:
        """Return the limit that ended the conversation, if the model had a turn before it."""
        if not self.spent:
            why = f"no room for a turn: {limit} in {self.limits}, {len(self.talk)} prompt tokens"
            raise BoundaryError("handler", why, retry=False)
        return limit

    def _room(self) -> tuple[int, Limit]:
        """Return how many tokens the next turn may have, and the limit that says so."""
        limits = self.limits
        rooms: tuple[tuple[int, Limit], ...] = (
            (limits.context_tokens - len(self.talk), "context"),
            (limits.tokens - self.spent, "tokens"),
            (limits.turn_tokens, "turn_tokens"),
        )
        return min(rooms, key=lambda room: room[0])

    async def _turn(self, room: int, narrowest: Limit) -> Limit:
        """Sample one turn; return what cut it off, if anything did."""
        for piece in range(RESUMES):
            generation = await self._sample(room)
            self.context.spent(turns=int(piece == 0), tokens=len(generation.token_ids))
            self.spent += len(generation.token_ids)
            room -= len(generation.token_ids)
            if generation.finish_reason == "stop":
                return ""
            if room < 1:
                return narrowest
            if generation.finish_reason == "length":
                return "context"  # a backend clips a completion to what it can hold
        raise BoundaryError("backend", f"one turn was aborted {RESUMES} times")

    async def _sample(self, room: int) -> Generation:
        began = time.monotonic()
        how = replace(self.how, max_tokens=room)
        generation = await self.context.model.generate(self.session, self.talk.prompt(), how)
        self.talk.sampled(generation, time.monotonic() - began)
        return generation

    async def _heard(self, said: Message, *, is_cut: bool) -> Sequence[Message]:
        if said.calls:
            return [await self._use(call) for call in said.calls]
        if is_cut:
            return [Message("user", CUT)]
        return await self.reply(self.talk) if self.reply is not None else ()

    async def _use(self, call: Call) -> Message:
        began = time.monotonic()
        with span("tool") as notes:
            answer = await self.box.answer(call)
            notes.update({"rollmq.tool": answer.name, "rollmq.tool_error": answer.error})
        self.talk.used(answer.name, time.monotonic() - began, answer.error)
        return answer.message(call)
