"""What a client asks of the router or the broker, and what it makes of the answers.

Each function here returns a `Wish`: the question, how to read its answer, and what to call the
wait for it. The two clients differ only in how they wait. This module knows no socket.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar
from uuid import uuid4

from ..errors import BrokerUnreachable, NodeRefused, RemoteProtocolError
from ..messages import AskNode, NodeAnswer
from ..messages.trainer import Role
from ..records import BackendState, Published
from ..typed import Mismatch, compile_decoder
from ..wire import json_buffer, read_json

PauseMode = Literal["keep", "wait", "abort"]
T = TypeVar("T")

_PUBLISHED = compile_decoder(Published)
_BACKEND = compile_decoder(BackendState)


@dataclass(frozen=True, slots=True)
class Wish(Generic[T]):
    """A question to a node and what its answer becomes."""

    what: str
    question: dict[str, Any]
    read: Callable[[Any], T]
    role: Role = "router"

    def message(self) -> tuple[AskNode, tuple[bytes, ...]]:
        """Return the question under a fresh id, and its body."""
        buffer, text = json_buffer("question", self.question)
        return AskNode(uuid4().hex, self.role, (buffer,)), (text,)

    def answer(self, message: NodeAnswer, body: list[Any]) -> T:
        """Return what the answer says.

        Raises: NodeRefused if it is a refusal; RemoteProtocolError if it cannot be read.
        """
        if message.code != "done":
            raise NodeRefused(message.message)
        if not message.buffers:
            raise RemoteProtocolError("the answer is missing", self.what)
        try:
            return self.read(read_json(message.buffers[0], body[0]))
        except Mismatch as wrong:
            raise RemoteProtocolError(str(wrong), self.what) from None


def publish(version: int, source: str, mode: PauseMode, timeout_s: float) -> Wish[Published]:
    """Ask for other weights on every backend."""
    question = {
        "ask": "publish",
        "policy_version": version,
        "source": source,
        "mode": mode,
        "timeout_s": timeout_s,
    }
    return Wish(f"the publishing of version {version}", question, _PUBLISHED)


def pause(version: int, mode: PauseMode, timeout_s: float) -> Wish[str]:
    """Ask every backend to pause for weights that the trainer puts there; answered by a name."""
    question = {"ask": "pause", "policy_version": version, "mode": mode, "timeout_s": timeout_s}
    return Wish(f"the pause before version {version}", question, _read_update_id)


def put(version: int, update_id: str, error: str = "") -> Wish[Published]:
    """Say that the weights are there, or why they are not; the backends go on."""
    question = {"ask": "put", "update_id": update_id, "error": error[:20_000]}
    return Wish(f"the publishing of version {version}", question, _PUBLISHED)


def backends() -> Wish[tuple[BackendState, ...]]:
    """Ask how every backend is."""
    return Wish("the list of backends", {"ask": "list"}, _read_all)


def add(
    name: str, kind: str, options: dict[str, Any], capacity: int
) -> Wish[tuple[BackendState, ...]]:
    """Ask for a backend more, which the router starts and keeps up."""
    question = {"ask": "add", "name": name, "kind": kind, "capacity": capacity}
    return Wish("the start of a backend", {**question, "options": options}, _read_all)


def drain(name: str, *, undo: bool) -> Wish[tuple[BackendState, ...]]:
    """Ask for no new session on a backend, or for new ones again."""
    question = {"ask": "drain", "name": name, "undo": undo}
    return Wish(f"the draining of {name}", question, _read_all)


def remove(name: str) -> Wish[tuple[BackendState, ...]]:
    """Ask for a backend to be used no more."""
    return Wish(f"the removal of {name}", {"ask": "remove", "name": name}, _read_all)


def apply(file: str, text: str, *, dry_run: bool) -> Wish[dict[str, Any]]:
    """Ask the broker to change what runs into another topology, as far as that goes live."""
    question = {"file": file, "topology": text, "dry_run": dry_run}
    return Wish(f"the plan for {file}", question, _read_plan, "broker")


def options_of(where: str | dict[str, Any]) -> dict[str, Any]:
    """Return the options of a backend that is given by them, or by its URL."""
    return {"url": where} if isinstance(where, str) else where


def with_doubt(silence: BrokerUnreachable, doubt: str) -> BrokerUnreachable:
    """Return the error of a wait with what the broker last said of the question, if anything."""
    if not doubt:
        return silence
    return BrokerUnreachable(f"{silence}; the broker's last word: {doubt}")


def _read_update_id(value: Any) -> str:
    update_id = value.get("update_id") if value.__class__ is dict else None
    if update_id.__class__ is not str:
        raise Mismatch("expected a string", ("update_id",))
    return str(update_id)


def _read_plan(value: Any) -> dict[str, Any]:
    if value.__class__ is not dict:
        raise Mismatch("expected an object")
    plan: dict[str, Any] = value
    return plan


def _read_all(value: Any) -> tuple[BackendState, ...]:
    if value.__class__ is not list:
        raise Mismatch("expected an array of backends")
    return tuple(map(_BACKEND, value))
