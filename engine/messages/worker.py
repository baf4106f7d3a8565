"""Messages between workers, other nodes and the broker: control, work, results and broadcast."""

from typing import Annotated, ClassVar, Literal

from ..records import Buffer, Failure, Name, Usage
from ..typed import Count, Id, Length, Record, Seconds, Text
from .trainer import AnswerCode, Role

Held = tuple[Id, Count]
EarlyOutcome = Literal["truncated", "agent_timeout"]
AskerRole = Literal["", "trainer", "operator"]
AttemptStatus = Literal["done", "failed", "lost", "cancelled", "released"]


class WorkerHello(Record, frozen=True):
    """Offer slots, and list every attempt held, so that a new broker adopts it."""

    kind: ClassVar[str] = "worker_hello"
    worker_id: Annotated[Id, "boot id, fresh at every start of the process that runs handlers"]
    node: Annotated[Id, "the node's name in the topology"]
    host: Annotated[Id, "the host it is on"]
    stage: Annotated[Id, "the stage it serves"]
    slots: Annotated[Count, "rollouts it takes at once"]
    bytes: Annotated[Count, "bytes of work it takes at once"]
    held: Annotated[tuple[Held, ...], "[rollout_id, attempt] running, or ended and unacknowledged"]


class Heartbeat(Record, frozen=True):
    """Renew the leases of the attempts listed."""

    kind: ClassVar[str] = "heartbeat"
    worker_id: Annotated[Id, "the worker"]
    held: Annotated[tuple[Held, ...], "[rollout_id, attempt] running, or ended and unacknowledged"]
    lag_s: Annotated[Seconds, "how long the loop that runs handlers has not answered"]
    loop_s: Annotated[Seconds, "what its last answer took"] = 0.0
    culprit: Annotated[Text, "the rollout whose code runs while it does not; or empty"] = ""


class WorkerCredit(Record, frozen=True):
    """Change what the worker takes at once; 0 slots drains it."""

    kind: ClassVar[str] = "worker_credit"
    worker_id: Annotated[Id, "the worker"]
    slots: Annotated[Count, "rollouts it takes at once"]
    bytes: Annotated[Count, "bytes of work it takes at once"]


class WorkerLost(Record, frozen=True):
    """The process that ran handlers is gone; every lease of this worker ends."""

    kind: ClassVar[str] = "worker_lost"
    worker_id: Annotated[Id, "the worker that is gone"]
    culprit: Annotated[Text, "the rollout whose code was running when it went; empty if unknown"]
    error: Annotated[Name, "what ended it: Blocked, Died"]
    message: Annotated[Text, "the same for people"]


class WorkerGoodbye(Record, frozen=True):
    """Leave with nothing held."""

    kind: ClassVar[str] = "worker_goodbye"
    worker_id: Annotated[Id, "the worker"]


class Part(Record, frozen=True):
    """One of the things that a node looks after."""

    name: Annotated[Id, "its name"]
    state: Annotated[Name, "how it is, in a word"]
    figures: Annotated[dict[str, float], "what is counted of it"]


class NodeHello(Record, frozen=True):
    """A node other than a worker is ready, and stays so while it repeats this with its figures."""

    kind: ClassVar[str] = "node_hello"
    boot_id: Annotated[Id, "fresh at every start"]
    node: Annotated[Id, "the node's name in the topology"]
    role: Annotated[Role, "what it is"]
    host: Annotated[Id, "the host it is on"]
    figures: Annotated[dict[str, float], "what it counts, for status"]
    parts: Annotated[tuple[Part, ...], "what it looks after, for status"] = ()


class Answered(Record, frozen=True):
    """A node's answer to `asked`; the broker hands it to the client."""

    kind: ClassVar[str] = "answered"
    client_id: Annotated[Id, "of the question"]
    request_id: Annotated[Id, "of the question"]
    code: Annotated[AnswerCode, "whether it was done"]
    message: Annotated[Text, "what went wrong, for people"] = ""
    buffers: Annotated[tuple[Buffer, ...], Length(0, 1), "`answer`, json, if it was done"] = ()


class Announced(Record, frozen=True):
    """A node tells all others of a new value: a hint, sent on to every node and never repeated."""

    kind: ClassVar[str] = "announced"
    node: Annotated[Id, "who tells it"]
    name: Annotated[Id, "what has a new value, such as `policy_version`"]
    value: Annotated[Count, "the value"]


class LauncherReply(Record, frozen=True):
    """Answer to a launcher's node_hello: the truth about what runs."""

    kind: ClassVar[str] = "launcher_reply"
    broker_id: Annotated[Id, "fresh at every start of the broker"]
    revision: Annotated[Count, "of the topology that runs: grows by one with each that is applied"]
    heard: Annotated[
        tuple[Part, ...], "who has said hello, by role; given if the hello has a figure `waiting`"
    ] = ()
    buffers: Annotated[
        tuple[Buffer, ...], Length(0, 1), "`topology`, json text, if the hello's `mark` is another"
    ] = ()


class Asked(Record, frozen=True):
    """A client's question to a node; a repeat of its id asks for nothing new."""

    kind: ClassVar[str] = "asked"
    client_id: Annotated[Id, "who asks, echoed in the answer"]
    request_id: Annotated[Id, "echoed in the answer"]
    buffers: Annotated[tuple[Buffer, ...], Length(1, 1), "`question`, json"]
    role: Annotated[AskerRole, "of the key of who asks; empty where there are no keys"] = ""


class Pins(Record, frozen=True):
    """Ask which of these rollouts, whose sandboxes are on a host, are pinned there no more."""

    kind: ClassVar[str] = "pins"
    node: Annotated[Id, "the node's name in the topology"]
    host: Annotated[Id, "the host it is on"]
    rollouts: Annotated[tuple[Id, ...], "whose results are settled"]


class Unpinned(Record, frozen=True):
    """Answer to pins: these rollouts are over, or begin again; their sandboxes are not needed."""

    kind: ClassVar[str] = "unpinned"
    broker_id: Annotated[Id, "fresh at every start of the broker"]
    rollouts: Annotated[tuple[Id, ...], "those that are not pinned to that host"]


class WorkerWelcome(Record, frozen=True):
    """Answer to worker_hello."""

    kind: ClassVar[str] = "worker_welcome"
    broker_id: Annotated[Id, "fresh at every start of the broker"]
    work: Annotated[Id, "endpoint to connect a PULL socket to"]
    drop: Annotated[tuple[Held, ...], "attempts held that have no lease: stop them"]


class HeartbeatReply(Record, frozen=True):
    """Answer to heartbeat: the truth about cancels and leases."""

    kind: ClassVar[str] = "heartbeat_reply"
    broker_id: Annotated[Id, "fresh at every start of the broker"]
    drop: Annotated[tuple[Held, ...], "attempts held that have no lease: stop them"]


class HelloAgain(Record, frozen=True):
    """The broker does not know this worker: say hello."""

    kind: ClassVar[str] = "hello_again"
    broker_id: Annotated[Id, "fresh at every start of the broker"]


class ResultAck(Record, frozen=True):
    """These results are committed, or no longer wanted: forget them."""

    kind: ClassVar[str] = "result_ack"
    held: Annotated[tuple[Held, ...], "[rollout_id, attempt]"]


class Work(Record, frozen=True):
    """One attempt of one stage; body frames are the task and what earlier stages left."""

    kind: ClassVar[str] = "work"
    broker_id: Annotated[Id, "the broker that leased it; discard it if another welcomed you since"]
    rollout_id: Annotated[Id, "the rollout"]
    group_id: Annotated[Id, "its group"]
    task_id: Annotated[Id, "its task"]
    task_kind: Annotated[Id, "which handlers serve it"]
    stage: Annotated[Id, "the stage"]
    attempt: Annotated[Count, "from 1, over all stages of the rollout"]
    timeout_s: Annotated[Seconds, "seconds that the handler may take"]
    buffers: Annotated[tuple[Buffer, ...], Length(1, 4096), "the first is the task"]


class StageResult(Record, frozen=True):
    """How an attempt ended; body frames are what it leaves to later stages and the trainer."""

    kind: ClassVar[str] = "stage_result"
    worker_id: Annotated[Id, "the worker"]
    rollout_id: Annotated[Id, "the rollout"]
    stage: Annotated[Id, "the stage"]
    attempt: Annotated[Count, "the attempt"]
    status: Annotated[
        AttemptStatus,
        "released: not at fault, give it to another; lost: what it had pinned to this host is gone",
    ]
    work_s: Annotated[Seconds, "seconds in the handler"]
    outcome: Annotated[EarlyOutcome | None, "how the agent ended, if not by finishing"] = None
    final: Annotated[bool, "skip the stages that remain"] = False
    pinned: Annotated[bool, "later stages run on this host, until it is lost"] = False
    reward: Annotated[float | None, "the reward"] = None
    rewards: Annotated[dict[str, float] | None, "the reward's parts"] = None
    trainable: Annotated[bool | None, "overrides the outcome's own rule"] = None
    failure: Annotated[Failure | None, "why it failed"] = None
    retry: Annotated[bool, "whether another attempt may go better"] = True
    usage: Annotated[Usage | None, "what it spent"] = None
    policy_version: Annotated[Count | None, "of the first token that it sampled"] = None
    buffers: Annotated[tuple[Buffer, ...], Length(0, 4096), "replace earlier ones of a name"] = ()


class Boot(Record, frozen=True):
    """A broker is there; workers that it does not know should say hello. A hint."""

    kind: ClassVar[str] = "boot"
    broker_id: Annotated[Id, "fresh at every start of the broker"]


class Stop(Record, frozen=True):
    """Stop these attempts. A hint: the truth is in the heartbeat's reply."""

    kind: ClassVar[str] = "stop"
    held: Annotated[tuple[Held, ...], "[rollout_id, attempt]"]
