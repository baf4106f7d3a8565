"""The records that placement keeps: its bounds, requests, sessions and backends.

Job: hold state. Does not know: any rule; only `placement` changes these.
Invariants: a name that a record refers to is a key of one of placement's tables, or empty.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rules:
    """The bounds of placement: requests that wait, seconds, and sessions for each open backend.

    sessions: 0 is no bound; they are shared out among the backends as the policy ranks them.
    """

    queue: int
    idle_s: float
    lost_after_s: float
    unplaced_s: float
    stop_s: float = 2.0
    sessions: int = 0


@dataclass(slots=True)
class Request:
    """One completion that a client waits for; missed if a heartbeat did not name its ticket."""

    request_id: str
    client: str
    session: str
    backend: str = ""
    ticket: str = ""
    tries: int = 0
    is_missed: bool = False


@dataclass(slots=True)
class Session:
    """A rollout's stay; `backend` is empty while it has none, `salt` is that of its start.

    is_new: it has not been on any backend yet.
    """

    client: str
    used_at: float
    salt: str = ""
    is_new: bool = True
    backend: str = ""
    requests: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Stopping:
    """A ticket that its backend was told to abort; whoever waits for the count is named."""

    backend: str
    client: str
    request_id: str
    since: float


@dataclass(slots=True)
class Backend:
    """A backend: `running` by ticket, `waiting` in order; `placed` counts all sessions so far."""

    node: str
    capacity: int
    heard_at: float
    is_open: bool = False
    is_held: bool = False
    placed: int = 0
    running: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, None] = field(default_factory=dict)
    sessions: set[str] = field(default_factory=set)
