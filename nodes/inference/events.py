"""What can happen to the router's placement, and what it may ask of the router.

Job: the vocabulary of `placement`: events in, instructions out.
Does not know: frames, sockets or time; a backend is named by its boot id, a client by its routing
id.
Invariants: an instruction names everything that the shell needs to carry it out.
"""

from dataclasses import dataclass

from .messages import FailureCode


@dataclass(frozen=True, slots=True)
class Asked:
    """A client wants a completion; a repeat of its id changes only whom to answer."""

    client: str
    request_id: str
    session: str


@dataclass(frozen=True, slots=True)
class Aborted:
    """Nobody waits for this request any more."""

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


@dataclass(frozen=True, slots=True)
class BackendAlive:
    """A backend was heard; `held` are the tickets that it works on."""

    backend: str
    held: tuple[str, ...]


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
    """A backend sent a whole completion."""

    backend: str
    ticket: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A backend will not complete a request."""

    backend: str
    ticket: str
    code: FailureCode
    message: str
    retry: bool


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
    | BackendAlive
    | BackendDraining
    | BackendGone
    | Answered
    | Refused
    | Closing
    | Tick
)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the request to the backend under this ticket."""

    backend: str
    ticket: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Send the completion at hand to the client, and forget the request."""

    client: str
    request_id: str


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


Instruction = Dispatch | Deliver | Fail | Drop | Stop | Forget | Welcome | AskHello | Lost
