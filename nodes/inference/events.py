"""What can happen to the router's placement, and what it may ask of the router.

Job: the vocabulary of `placement`: events in, instructions out.
Does not know: frames, sockets or time; a backend is named by its boot id, a client by its routing
id.
Invariants: an instruction names everything that the shell needs to carry it out.
"""

from dataclasses import dataclass
from typing import Literal

from .messages import FailureCode, Pause, PauseMode, Resume, UpdateStep, UpdateWeights

Shutting = Literal["drain", "move", "evict"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A client wants a completion; a repeat of its id changes only whom to answer."""

    client: str
    request_id: str
    session: str


@dataclass(frozen=True, slots=True)
class Aborted:
    """A client wants this request no more; it is told what was spent on it."""

    client: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Released:
    """The session is over."""

    session: str


@dataclass(frozen=True, slots=True)
class ClientGone:
    """The client's connection is closed."""

    client: str


@dataclass(frozen=True, slots=True)
class BackendUp:
    """A backend said hello; another boot of the same node is thereby gone."""

    backend: str
    node: str
    capacity: int
    policy_version: int = 0


@dataclass(frozen=True, slots=True)
class BackendOpened:
    """New sessions may be placed on a backend."""

    backend: str


@dataclass(frozen=True, slots=True)
class BackendShut:
    """No new session is placed on a backend.

    drain: what is open goes on. move: sessions and what waits go elsewhere, what runs goes on.
    evict: what runs is stopped and goes elsewhere too.
    """

    backend: str
    how: Shutting


@dataclass(frozen=True, slots=True)
class BackendHeld:
    """Dispatch nothing to a backend, or go on with it."""

    backend: str
    held: bool


@dataclass(frozen=True, slots=True)
class BackendAlive:
    """A backend was heard; `held` are the tickets that it works on."""

    backend: str
    held: tuple[str, ...]
    policy_version: int = 0
    figures: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class BackendDraining:
    """A backend wants no new session."""

    backend: str


@dataclass(frozen=True, slots=True)
class BackendGone:
    """A backend left, or its connection is closed."""

    backend: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A backend sent a whole completion of so many tokens."""

    backend: str
    ticket: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Stopped:
    """A backend has stopped a ticket, after so many tokens."""

    backend: str
    ticket: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A backend will not complete a request."""

    backend: str
    ticket: str
    code: FailureCode
    message: str
    retry: bool


@dataclass(frozen=True, slots=True)
class Probed:
    """A backend answered a probe; `wrong` says what is wrong with the answer, or is empty."""

    backend: str
    ticket: str
    wrong: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """A backend has done a step of an update, or could not."""

    backend: str
    step: UpdateStep


@dataclass(frozen=True, slots=True)
class Publish:
    """Bring every backend to other weights."""

    update_id: str
    policy_version: int
    source: str
    mode: PauseMode
    timeout_s: float
    stops: bool = False  # once all have paused, until WeightsPut


@dataclass(frozen=True, slots=True)
class WeightsPut:
    """The trainer has put the weights of a paused update there, or says why it could not."""

    update_id: str
    error: str


@dataclass(frozen=True, slots=True)
class NodeDrained:
    """An operator wants no new sessions on a node, or wants them again."""

    node: str
    drained: bool


@dataclass(frozen=True, slots=True)
class NodeRemoved:
    """An operator wants a node no more, or wants it again."""

    node: str
    removed: bool


@dataclass(frozen=True, slots=True)
class Closing:
    """Take nothing new; what is open goes on."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Asked
    | Aborted
    | Released
    | ClientGone
    | BackendUp
    | BackendOpened
    | BackendShut
    | BackendHeld
    | BackendAlive
    | BackendDraining
    | BackendGone
    | Answered
    | Stopped
    | Refused
    | Probed
    | Stepped
    | Publish
    | WeightsPut
    | NodeDrained
    | NodeRemoved
    | Closing
    | Tick
)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the request to the backend under this ticket, with its session's cache salt."""

    backend: str
    ticket: str
    request_id: str
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Send the completion at hand, of this backend, to the client, and forget the request."""

    client: str
    request_id: str
    backend: str = ""


@dataclass(frozen=True, slots=True)
class Fail:
    """Tell the client that there will be no completion, and forget the request."""

    client: str
    request_id: str
    code: FailureCode
    message: str
    retry: bool


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget the request; nobody waits for it."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Spent:
    """Tell the client what its aborted request had sampled."""

    client: str
    request_id: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell the backend to abort the ticket."""

    backend: str
    ticket: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Tell the backend that the session is over."""

    backend: str
    session: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """Tell the backend that it is known."""

    backend: str


@dataclass(frozen=True, slots=True)
class AskHello:
    """Tell the backend that it is not known."""

    backend: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Report that a backend and what it held are gone."""

    backend: str
    node: str
    reason: str
    sessions: int
    requests: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask a backend for a small completion under this ticket, and check it."""

    backend: str
    ticket: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the backend that it will not be used, and why."""

    backend: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class TellStep:
    """Tell the backend to do a step of an update."""

    backend: str
    message: Pause | UpdateWeights | Resume


@dataclass(frozen=True, slots=True)
class Standing:
    """Report that a backend is used in another way than before."""

    backend: str
    node: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class AllPaused:
    """Report that an update waits for the trainer to put the weights there."""

    update_id: str


@dataclass(frozen=True, slots=True)
class Published:
    """Report how an update ended: whether it holds, where, and what went wrong by node."""

    update_id: str
    policy_version: int
    source: str
    done: bool
    backends: tuple[str, ...]
    failed: dict[str, str]


Instruction = (
    Dispatch
    | Deliver
    | Fail
    | Drop
    | Spent
    | Stop
    | Forget
    | Welcome
    | AskHello
    | Lost
    | Probe
    | Refuse
    | TellStep
    | Standing
    | AllPaused
    | Published
)
