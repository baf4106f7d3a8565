"""Every error that rollmq raises, in one tree; each says who caused it and what to do.

RollmqError
|-- TopologyError         topology.yaml is wrong: correct the places named
|-- ProtocolError         a message broke the protocol
|   |-- LocalProtocolError    we were about to send it: a bug or a bad argument on this side
|   `-- RemoteProtocolError   the peer sent it: the message was refused
|-- LedgerError           an impossible transition: a bug in the broker; carries the history
|-- JournalError          durable state cannot be opened, read or written
|   `-- DiskFull              no space: submits are refused until it returns
|-- ClientError           what a trainer may see
|   |-- Full                  the broker has no room now: wait, or submit less
|   |-- Refused               the broker will not take this submit: change it
|   |-- NodeRefused           a node of the topology will not do what was asked of it
|   |-- StateLost             the broker forgot rollouts that it had accepted
|   |-- SourceFailed          a sampling's prompt source gave nothing, or its filter failed
|   |-- BrokerUnreachable     nothing was heard within the deadline named
|   |-- AccessRefused         our key may not do this there: add it, or use another
|   `-- Replaced              another process said hello with this client_id
|-- KeysError             a key file is missing, readable by others, or not what it should be
|-- FilterError           a filter of groups cannot be loaded, or raised
|-- NodeFailed            a process of the topology could not be started or kept running
`-- BoundaryError         extension code failed at a named boundary (sandbox, backend, ...)
"""

from collections.abc import Sequence
from dataclasses import dataclass


class RollmqError(Exception):
    """Anything that rollmq raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one place of a file."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        """Return `file:line: key: message`, the form that editors jump to."""
        place = f"{self.file}:{self.line}"
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class TopologyError(RollmqError):
    """The topology file is wrong; `problems` names every place at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ProtocolError(RollmqError):
    """A message that does not follow docs/protocol.md; `field` names the part at fault."""

    def __init__(self, message: str, field: str = "") -> None:
        self.field = field
        super().__init__(f"{field}: {message}" if field else message)


class LocalProtocolError(ProtocolError):
    """Our side was about to break the protocol; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; its message was refused."""


class LedgerError(RollmqError):
    """An impossible transition; `history` is what happened to the rollout, oldest first."""

    def __init__(self, message: str, history: Sequence[str] = ()) -> None:
        self.history = tuple(history)
        super().__init__("\n  ".join([message, *self.history]))


class JournalError(RollmqError):
    """Durable state cannot be opened, read or written."""


class DiskFull(JournalError):  # noqa: N818 - reads as the state that it reports
    """The journal's disk has no space; what is running is kept, submits are refused."""


class ClientError(RollmqError):
    """What a trainer may see."""


class Full(ClientError):  # noqa: N818 - the name that queues use
    """The broker has no room for these rollouts now; wait or submit less."""


class Refused(ClientError):  # noqa: N818 - reads as the answer that it reports
    """The broker will not take this submit as it is; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(f"{code}: {message}")


class NodeRefused(ClientError):  # noqa: N818 - reads as the answer that it reports
    """A node of the topology was asked and did not do it; the message says why."""


class StateLost(ClientError):  # noqa: N818 - reads as the event that it reports
    """The broker restarted with durability none and forgot rollouts: submit them again."""


class SourceFailed(ClientError):  # noqa: N818 - reads as the event that it reports
    """A sampling ended for another reason than that its prompts did; the message says which."""


class BrokerUnreachable(ClientError):  # noqa: N818 - reads as the state that it reports
    """Nothing was heard from the broker within the deadline that the message names."""


class AccessRefused(ClientError):  # noqa: N818 - reads as the answer that it reports
    """The other side does not take our key, or the key may not do this; the message says which."""


class Replaced(ClientError):  # noqa: N818 - reads as the event that it reports
    """Another process said hello with the same client_id and has taken over."""


class KeysError(RollmqError):
    """A key file is missing, readable by others, or not what it should be; the message names it."""


class FilterError(RollmqError):
    """A filter of groups cannot be loaded, or it raised; the message names it."""


class NodeFailed(RollmqError):  # noqa: N818 - reads as the event that it reports
    """A process of the topology could not be started or kept running."""


class BoundaryError(RollmqError):
    """Extension code failed at a named boundary.

    `retry` says whether another attempt may go better; a rollout whose attempts are used up
    ends as failed, never with a reward of 0.
    """

    def __init__(self, boundary: str, message: str, *, retry: bool = True) -> None:
        self.boundary = boundary
        self.retry = retry
        super().__init__(message)
