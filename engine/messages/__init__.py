"""Every message of the bus, by edge. Nothing here has behaviour."""

from typing import Protocol

from .sampling import Batch, EndSample, Judged, Sample, Wanted
from .trainer import (
    Accepted,
    Ack,
    AskNode,
    Cancel,
    Cancelled,
    Credit,
    Goodbye,
    Hello,
    NodeAnswer,
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
    Announced,
    Answered,
    Asked,
    Boot,
    Heartbeat,
    HeartbeatReply,
    Held,
    HelloAgain,
    NodeHello,
    Part,
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

    @property
    def kind(self) -> str:
        """The kind's name in frame 0; a class variable of each record."""


FROM_TRAINER = (
    Hello,
    Submit,
    Ack,
    Cancel,
    Sample,
    EndSample,
    StatusRequest,
    AskNode,
    Ping,
    Goodbye,
)
TO_TRAINER = (
    Welcome,
    Accepted,
    Refusal,
    Credit,
    Result,
    Cancelled,
    Wanted,
    Judged,
    Batch,
    Status,
    NodeAnswer,
    Pong,
    Replaced,
    Problem,
)
FROM_NODE = (
    WorkerHello,
    Heartbeat,
    WorkerCredit,
    WorkerLost,
    WorkerGoodbye,
    NodeHello,
    Answered,
    Announced,
    Pins,
    StatusRequest,
)
TO_NODE = (WorkerWelcome, HeartbeatReply, HelloAgain, Asked, Unpinned, Status, Problem)
WORK = (Work, ResultAck)
RESULTS = (StageResult,)
EVENTS = (Boot, Stop, Announced)

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
    "Announced",
    "Answered",
    "AskNode",
    "Asked",
    "Batch",
    "Boot",
    "Cancel",
    "Cancelled",
    "Credit",
    "EndSample",
    "Goodbye",
    "Heartbeat",
    "HeartbeatReply",
    "Held",
    "Hello",
    "HelloAgain",
    "Judged",
    "Message",
    "NodeAnswer",
    "NodeHello",
    "Part",
    "Ping",
    "Pins",
    "Pong",
    "Problem",
    "Refusal",
    "Replaced",
    "Result",
    "ResultAck",
    "Sample",
    "StageResult",
    "Status",
    "StatusRequest",
    "Stop",
    "Submit",
    "Unpinned",
    "Wanted",
    "Welcome",
    "Work",
    "WorkerCredit",
    "WorkerGoodbye",
    "WorkerHello",
    "WorkerLost",
    "WorkerWelcome",
]
