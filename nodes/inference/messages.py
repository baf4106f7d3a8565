"""Messages on the edges run worker - router and router - backend (both DEALER - ROUTER).

Job: say what may be said there. The same `generate` and `generated` go over both edges; towards a
backend, `request_id` is the router's ticket for one dispatch, so an answer to an older dispatch
cannot be taken for the current one.
Does not know: who is placed where, or any socket.
Invariants: token IDs are int32, log-probabilities float32, spans int32; all as body frames. No kind
has a name that the engine uses.
"""

from typing import Annotated, ClassVar, Literal

from engine.records import Buffer
from engine.typed import AtLeast, Count, Id, Int64, Length, Record, Seconds, Text

from ..tasks import FinishReason

Session = Annotated[str, Length(1, 256)]
PauseMode = Literal["keep", "wait", "abort"]
StepName = Literal["pause", "update_weights", "resume"]
FailureCode = Literal[
    "full", "draining", "no_backend", "backend_lost", "backend_error", "too_long", "invalid"
]


class Generate(Record, frozen=True):
    """Ask for one completion of the prompt in the body; a repeat of its id asks for nothing new."""

    kind: ClassVar[str] = "generate"
    request_id: Annotated[Id, "unique over all workers; towards a backend, the router's ticket"]
    session: Annotated[Session, "stays on one backend"]
    max_tokens: Annotated[Count, "the most tokens to sample"]
    buffers: Annotated[tuple[Buffer, ...], Length(1, 1), "`token_ids`, int32 [n]"]
    temperature: Annotated[float, "of the softmax"] = 1.0
    top_p: Annotated[float, "nucleus; 1 keeps every token"] = 1.0
    top_k: Annotated[Count, "0 keeps every token"] = 0
    stop_token_ids: Annotated[tuple[Count, ...], "end the completion, and are part of it"] = ()
    seed: Annotated[Int64 | None, "makes sampling repeatable where the backend can"] = None
    cache_salt: Annotated[
        str, Length(0, 200), "set by the router: prefixes of other salts miss"
    ] = ""


class Abort(Record, frozen=True):
    """Stop requests; `aborted` is each one's answer, unless it has another one already."""

    kind: ClassVar[str] = "abort"
    request_ids: Annotated[tuple[Id, ...], "the requests; towards a backend, their tickets"]


class Release(Record, frozen=True):
    """End sessions and whatever of them is still running."""

    kind: ClassVar[str] = "release"
    sessions: Annotated[tuple[Session, ...], "the sessions"]


class RouterPing(Record, frozen=True):
    """Ask whether the router is there and still has what this worker waits for."""

    kind: ClassVar[str] = "router_ping"
    number: Annotated[Count, "counts the pings, from 1"]
    open: Annotated[tuple[Id, ...], "requests without an answer"]


class Generated(Record, frozen=True):
    """A whole completion: `token_ids` int32 [n], `logprobs` float32 [n], `policy_spans` int32."""

    kind: ClassVar[str] = "generated"
    request_id: Annotated[Id, "of the request; from a backend, its ticket"]
    finish_reason: Annotated[FinishReason, "why it ended"]
    cached_tokens: Annotated[Count, "prompt tokens that the prefix cache held"]
    backend: Annotated[Id, "the node that sampled"]
    queue_s: Annotated[Seconds, "in the backend, before the prompt was computed"]
    prefill_s: Annotated[Seconds, "until the first token"]
    decode_s: Annotated[Seconds, "from the first token to the last"]
    buffers: Annotated[tuple[Buffer, ...], Length(3, 3), "token_ids, logprobs, policy_spans"]


class GenerateFailed(Record, frozen=True):
    """There will be no completion for this request."""

    kind: ClassVar[str] = "generate_failed"
    request_id: Annotated[Id, "of the request; from a backend, its ticket"]
    code: Annotated[FailureCode, "why"]
    message: Annotated[Text, "the same for people"]
    retry: Annotated[bool, "whether asking again may go better"]


class Aborted(Record, frozen=True):
    """A request was stopped; nothing of it is delivered."""

    kind: ClassVar[str] = "aborted"
    request_id: Annotated[Id, "of the request; from a backend, its ticket"]
    tokens: Annotated[Count, "sampled before it stopped"]


class RouterPong(Record, frozen=True):
    """The router is there; requests that it does not know have to be sent again."""

    kind: ClassVar[str] = "router_pong"
    router_id: Annotated[Id, "fresh at every start of the router"]
    number: Annotated[Count, "of the ping; 0 if there was none"]
    unknown: Annotated[tuple[Id, ...], "those of the ping's requests that it does not have"]


class BackendHello(Record, frozen=True):
    """Offer a backend."""

    kind: ClassVar[str] = "backend_hello"
    boot_id: Annotated[Id, "fresh at every start, and the socket's routing id"]
    node: Annotated[Id, "the node's name in the topology"]
    model: Annotated[Id, "what it serves"]
    capacity: Annotated[Annotated[int, AtLeast(1)], "requests it takes at once"]
    policy_version: Annotated[Count, "of the weights that it holds"]


class BackendHeartbeat(Record, frozen=True):
    """The backend is alive and works on these; what it never received shows by its absence."""

    kind: ClassVar[str] = "backend_heartbeat"
    boot_id: Annotated[Id, "the backend"]
    held: Annotated[tuple[Id, ...], "tickets without an answer"]
    policy_version: Annotated[Count, "of the weights that it holds"]
    figures: Annotated[dict[str, float], "what it counts, for status"]


class BackendDrain(Record, frozen=True):
    """Place no new session here; what is open goes on."""

    kind: ClassVar[str] = "backend_drain"
    boot_id: Annotated[Id, "the backend"]


class BackendGoodbye(Record, frozen=True):
    """Leave; what is still open here is lost."""

    kind: ClassVar[str] = "backend_goodbye"
    boot_id: Annotated[Id, "the backend"]


class BackendWelcome(Record, frozen=True):
    """Answer to hello and heartbeat; a backend drops what another router_id gave it."""

    kind: ClassVar[str] = "backend_welcome"
    router_id: Annotated[Id, "fresh at every start of the router"]


class BackendHelloAgain(Record, frozen=True):
    """The router does not know this backend: drop everything and say hello."""

    kind: ClassVar[str] = "backend_hello_again"
    router_id: Annotated[Id, "fresh at every start of the router"]


class BackendRefused(Record, frozen=True):
    """The probe's answer was wrong: no request will come until another hello."""

    kind: ClassVar[str] = "backend_refused"
    router_id: Annotated[Id, "fresh at every start of the router"]
    reason: Annotated[Text, "for people"]


class Pause(Record, frozen=True):
    """Stop sampling; the first step of an update."""

    kind: ClassVar[Literal["pause"]] = "pause"
    update_id: Annotated[Id, "of the update; a repeat of a step is answered like the first"]
    mode: Annotated[PauseMode, "keep requests frozen, wait for their end, or abort them"]


class UpdateWeights(Record, frozen=True):
    """Take other weights; the second step of an update."""

    kind: ClassVar[Literal["update_weights"]] = "update_weights"
    update_id: Annotated[Id, "of the update"]
    policy_version: Annotated[Count, "of the new weights"]
    source: Annotated[Text, "where they are: a path; empty if the trainer puts them there itself"]


class Resume(Record, frozen=True):
    """Sample again; the last step of an update, also of one that failed."""

    kind: ClassVar[Literal["resume"]] = "resume"
    update_id: Annotated[Id, "of the update"]


class UpdateStep(Record, frozen=True):
    """A backend has done a step of an update, or could not."""

    kind: ClassVar[str] = "update_step"
    update_id: Annotated[Id, "of the update"]
    step: Annotated[StepName, "the step"]
    policy_version: Annotated[Count, "of the weights that it holds now"]
    error: Annotated[str, Length(0, 20_000), "for people; empty if it was done"] = ""


FROM_RUN_WORKER = (Generate, Abort, Release, RouterPing)
TO_RUN_WORKER = (Generated, GenerateFailed, Aborted, RouterPong)
FROM_BACKEND = (
    BackendHello,
    BackendHeartbeat,
    BackendDrain,
    BackendGoodbye,
    Generated,
    GenerateFailed,
    Aborted,
    UpdateStep,
)
TO_BACKEND = (
    Generate,
    Abort,
    Release,
    BackendWelcome,
    BackendHelloAgain,
    BackendRefused,
    Pause,
    UpdateWeights,
    Resume,
)

FromRunWorker = Generate | Abort | Release | RouterPing
ToRunWorker = Generated | GenerateFailed | Aborted | RouterPong
FromBackend = (
    BackendHello
    | BackendHeartbeat
    | BackendDrain
    | BackendGoodbye
    | Generated
    | GenerateFailed
    | Aborted
    | UpdateStep
)
ToBackend = (
    Generate
    | Abort
    | Release
    | BackendWelcome
    | BackendHelloAgain
    | BackendRefused
    | Pause
    | UpdateWeights
    | Resume
)
