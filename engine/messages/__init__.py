"""Every message of the bus, by edge. Nothing here has behaviour."""

from typing import ClassVar, Protocol

from .trainer import (
    Accepted,
    Ack,
    Cancel,
    Cancelled,
    Credit,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Problem,
    Refusal,
    Replaced,
    Result,
    Status,
    StatusRequest,
    Submit,
    Welcome,
)
from .worker import (
    Boot,
    Heartbeat,
    HeartbeatReply,
    Held,
    HelloAgain,
    NodeHello,
    Pins,
    ResultAck,
    StageResult,
    Stop,
    Unpinned,
    Work,
    WorkerCredit,
    WorkerGoodbye,
    WorkerHello,
    WorkerLost,
    WorkerWelcome,
)


class Message(Protocol):
    """A record with a kind; `buffers`, where it has them, describe its body frames."""

    kind: ClassVar[str]


FROM_TRAINER = (Hello, Submit, Ack, Cancel, StatusRequest, Ping, Goodbye)
TO_TRAINER = (
    Welcome,
    Accepted,
    Refusal,
    Credit,
    Result,
    Cancelled,
    Status,
    Pong,
    Replaced,
    Problem,
)
FROM_NODE = (WorkerHello, Heartbeat, WorkerCredit, WorkerLost, WorkerGoodbye, NodeHello, Pins)
TO_NODE = (WorkerWelcome, HeartbeatReply, HelloAgain, Unpinned, Problem)
WORK = (Work, ResultAck)
RESULTS = (StageResult,)
EVENTS = (Boot, Stop)

__all__ = [
    "EVENTS",
    "FROM_NODE",
    "FROM_TRAINER",
    "RESULTS",
    "TO_NODE",
    "TO_TRAINER",
    "WORK",
    "Accepted",
    "Ack",
    "Boot",
    "Cancel",
    "Cancelled",
    "Credit",
    "Goodbye",
    "Heartbeat",
    "HeartbeatReply",
    "Held",
    "Hello",
    "HelloAgain",
    "Message",
    "NodeHello",
    "Ping",
    "Pins",
    "Pong",
    "Problem",
    "Refusal",
    "Replaced",
    "Result",
    "ResultAck",
    "StageResult",
    "Status",
    "StatusRequest",
    "Stop",
    "Submit",
    "Unpinned",
    "Welcome",
    "Work",
    "WorkerCredit",
    "WorkerGoodbye",
    "WorkerHello",
    "WorkerLost",
    "WorkerWelcome",
]
