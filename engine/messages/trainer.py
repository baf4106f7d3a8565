"""Messages on the edge trainer - broker (DEALER - ROUTER)."""

from typing import Annotated, ClassVar, Literal

from ..records import Buffer, Failure, Outcome, Receipt, StageTiming
from ..typed import Count, Id, Int64, Length, Record, Seconds, Text

Range = tuple[Count, Count]
AnswerCode = Literal["done", "refused", "no_node"]
Role = Literal["worker", "router", "backend", "sandboxes", "metrics", "launcher", "broker"]
ProblemCode = Literal["hello_first", "refused", "access"]
RefusalCode = Literal["full", "conflict", "invalid", "disk_full", "hello_first"]


class Hello(Record, frozen=True):
    """Open or resume a client's stay; everything not acknowledged is delivered again."""

    kind: ClassVar[str] = "hello"
    client_id: Annotated[Id, "names the trainer across its own restarts"]
    window: Annotated[Count, "results that may be delivered and not yet acknowledged"]


class Submit(Record, frozen=True):
    """Submit the rollouts of one task; one body frame, the task's payload as json."""

    kind: ClassVar[str] = "submit"
    submit_id: Annotated[Id, "echoed in the answer"]
    group_id: Annotated[Id, "the group that these rollouts form"]
    task_id: Annotated[Id, "the task"]
    task_kind: Annotated[Id, "which handlers serve it"]
    rollout_ids: Annotated[
        tuple[Id, ...],
        Length(1, 65_536),
        "chosen by the client; an id already known is the same rollout",
    ]
    buffers: Annotated[tuple[Buffer, ...], Length(1, 1), "exactly one, named `task`"]
    group_size: Annotated[Count, "the group's rollouts over all its submits; 0 for just these"] = 0
    priority: Annotated[Int64, "higher goes first among this client's rollouts"] = 0
    sampling_id: Annotated[Text, "the sampling that this group is for; empty for none"] = ""
    prompt: Annotated[Count, "the group's number within its sampling, from 0"] = 0


class Ack(Record, frozen=True):
    """Acknowledge results; the broker may forget them."""

    kind: ClassVar[str] = "ack"
    seqs: Annotated[tuple[Range, ...], "inclusive ranges of sequence numbers"]
    window: Annotated[Count, "the new window"]
    held: Annotated[
        tuple[Range, ...], "results received and kept for later: the window has room again"
    ] = ()


class Cancel(Record, frozen=True):
    """Cancel rollouts, whole groups, or everything of a client."""

    kind: ClassVar[str] = "cancel"
    cancel_id: Annotated[Id, "echoed in the answer"]
    rollout_ids: Annotated[tuple[Id, ...], "rollouts"] = ()
    group_ids: Annotated[tuple[Id, ...], "groups"] = ()
    everything: Annotated[bool, "all of the client's rollouts"] = False
    client_id: Annotated[Text, "whose rollouts; empty for the sender's own"] = ""


class StatusRequest(Record, frozen=True):
    """Ask for the broker's state; no hello is needed."""

    kind: ClassVar[str] = "status_request"
    request_id: Annotated[Id, "echoed in the answer"]
    rollout_id: Annotated[Text, "a rollout to describe, too; empty for none"] = ""


class Ping(Record, frozen=True):
    """Ask whether the broker is there, and whether it still owes results."""

    kind: ClassVar[str] = "ping"
    nonce: Annotated[Count, "echoed in the answer"]


class AskNode(Record, frozen=True):
    """Ask a node of this role something; repeated until answered.

    What is for another role than `broker`, the broker does not read.
    """

    kind: ClassVar[str] = "ask_node"
    request_id: Annotated[Id, "echoed in the answer; a repeat asks for nothing new"]
    role: Annotated[Role, "of the node"]
    buffers: Annotated[tuple[Buffer, ...], Length(1, 1), "exactly one, named `question`, json"]


class Goodbye(Record, frozen=True):
    """Leave; results wait for the next hello."""

    kind: ClassVar[str] = "goodbye"


class Welcome(Record, frozen=True):
    """Answer to hello: what this broker is and takes."""

    kind: ClassVar[str] = "welcome"
    broker_id: Annotated[Id, "fresh at every start of the broker"]
    stages: Annotated[tuple[Id, ...], "the pipeline, in order"]
    heartbeat_s: Annotated[Seconds, "how often to ping"]
    message_bytes: Annotated[Count, "the largest message taken"]
    group: Annotated[Count, "the most rollouts one submit may have"]
    window: Annotated[Count, "a window worth asking for: limits.client_window"]
    unacked: Annotated[Count, "this client's rollouts not yet acknowledged"]
    acked_through: Annotated[Count, "every result up to this sequence number is acknowledged"]


class Accepted(Record, frozen=True):
    """The submit is journalled; each of its rollouts will end exactly once."""

    kind: ClassVar[str] = "accepted"
    submit_id: Annotated[Id, "of the submit"]
    repeated: Annotated[tuple[Id, ...], "those of its rollouts that were known already"]


class Refusal(Record, frozen=True):
    """The submit, or the sampling, was not taken; nothing of it was kept."""

    kind: ClassVar[str] = "refused"
    submit_id: Annotated[Id, "of the submit, or of the sampling"]
    code: Annotated[RefusalCode, "why; `full` and `disk_full` pass"]
    message: Annotated[Text, "the same for people"]


class Credit(Record, frozen=True):
    """There is room again, for a client that was refused as full."""

    kind: ClassVar[str] = "credit"
    rollouts: Annotated[Count, "rollouts that would be taken now"]
    bytes: Annotated[Count, "bytes of payload that would be taken now"]


class Result(Record, frozen=True):
    """A rollout that has ended; body frames are what its stages left."""

    kind: ClassVar[str] = "result"
    seq: Annotated[Count, "per client, +1 in order of ending; the key to drop a repeat"]
    rollout_id: Annotated[Id, "the rollout"]
    group_id: Annotated[Id, "its group"]
    group_size: Annotated[Count, "how many rollouts the group has"]
    task_id: Annotated[Id, "its task"]
    outcome: Annotated[Outcome, "how it ended"]
    reward: Annotated[float | None, "null unless it was evaluated or its outcome sets it"]
    rewards: Annotated[dict[str, float], "the reward's parts"]
    trainable: Annotated[bool, "whether a trainer may learn from it"]
    failures: Annotated[tuple[Failure, ...], "every attempt that failed, oldest first"]
    timings: Annotated[tuple[StageTiming, ...], "one for each committed stage"]
    total_s: Annotated[Seconds, "accepted until ended"]
    receipt: Annotated[Receipt | None, "of a cancel"] = None
    policy_version: Annotated[Count | None, "of the first token sampled; null if unknown"] = None
    sampling_id: Annotated[Text, "the sampling that it is for; empty for none"] = ""
    prompt: Annotated[Count, "its group's number within its sampling"] = 0
    buffers: Annotated[tuple[Buffer, ...], "the body frames, in order"] = ()


class Cancelled(Record, frozen=True):
    """Everything that the cancel named is over."""

    kind: ClassVar[str] = "cancelled"
    cancel_id: Annotated[Id, "of the cancel"]
    receipts: Annotated[tuple[Receipt, ...], "one for each rollout that this cancel ended"]
    ended: Annotated[tuple[Id, ...], "rollouts that had ended before"]
    unknown: Annotated[tuple[Id, ...], "rollouts and groups that this client does not have"]


class Status(Record, frozen=True):
    """The broker's state; one body frame, named `status`, json."""

    kind: ClassVar[str] = "status"
    request_id: Annotated[Id, "of the request"]
    buffers: Annotated[tuple[Buffer, ...], Length(1, 1), "exactly one, named `status`"]


class NodeAnswer(Record, frozen=True):
    """A node's answer, as it came; one body frame named `answer`, json, if the code is `done`."""

    kind: ClassVar[str] = "node_answer"
    request_id: Annotated[Id, "of the request"]
    code: Annotated[AnswerCode, "`no_node`: none of that role is heard now, ask again"]
    message: Annotated[Text, "what went wrong, for people"] = ""
    buffers: Annotated[tuple[Buffer, ...], Length(0, 1), "the answer"] = ()


class Pong(Record, frozen=True):
    """Answer to ping."""

    kind: ClassVar[str] = "pong"
    broker_id: Annotated[Id, "changes when the broker restarts: say hello again"]
    nonce: Annotated[Count, "of the ping"]
    unacked: Annotated[
        Count, "this client's rollouts not acknowledged, by all that it sent before the ping"
    ]


class Replaced(Record, frozen=True):
    """Another connection said hello with this client_id; this one is no longer served."""

    kind: ClassVar[str] = "replaced"
    client_id: Annotated[Id, "the client"]


class Problem(Record, frozen=True):
    """A message of this peer was refused."""

    kind: ClassVar[str] = "problem"
    code: Annotated[
        ProblemCode,
        "hello_first: say hello, then repeat; refused: change the message; "
        "access: the connection's key may not say it, or is revoked",
    ]
    field: Annotated[Text, "the field at fault; empty if it is the whole message"] = ""
    message: Annotated[Text, "what is wrong and what is allowed"] = ""
