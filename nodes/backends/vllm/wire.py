"""What a vLLM server is sent and what it answers, as bytes and records.

    POST /inference/v1/generate    GET /metrics

Job: write a completion's request, read its answer, and say what a refusal means to the caller.
Does not know: sockets, tickets or time.
Invariants: a `Reply` is aligned: as many log-probabilities as tokens, each of its own token, finite
and not above 0, and spans that cover all tokens in order. Whatever else arrives is a BadReply: a
log-probability that is missing is never made up.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import numpy as np
import numpy.typing as npt
import orjson

from engine.typed import AtLeast, Count, compile_decoder

from ...inference.messages import FailureCode, Generate
from ...tasks import SENTINEL, FinishReason

ROUNDING = 1e-4  # a log-softmax may end this far above 0
UNVERSIONED = "default"  # vLLM's name of the weights that it started with
LONGEST = 1000  # characters of a server's message that are passed on
TOKEN_MARK = "token_id:"  # noqa: S105 - how vLLM up to 0.31 writes a token
CALLERS_FAULT = frozenset({400, 413, 422})
GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_use",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_queries_total": "prefix_queries",
    "vllm:prefix_cache_hits_total": "prefix_hits",
    "vllm:generation_tokens_total": "tokens",
}
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(\S+)", re.MULTILINE)

Ids = npt.NDArray[np.int32]


class BadReply(ValueError):  # noqa: N818 - reads as the thing that it reports
    """A server's answer that cannot be used; says why."""


@dataclass(frozen=True, slots=True)
class Versions:
    """The policy version when a request was sent and when its answer came."""

    begun: int
    ended: int


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """A completion: token_ids int32 [n], logprobs float32 [n], policy_spans int32 [k, 3]."""

    token_ids: Ids
    logprobs: npt.NDArray[np.float32]
    finish_reason: FinishReason
    policy_spans: Ids
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no completion."""

    code: FailureCode
    message: str
    retry: bool


@dataclass(frozen=True, slots=True)
class Served:
    """What a server serves."""

    model: str
    context_tokens: int


@dataclass(frozen=True, slots=True)
class _Span:
    version: str
    start: Count
    end: Annotated[int, AtLeast(0)]


_SPAN = compile_decoder(_Span)


def write_request(message: Generate, prompt: Ids, served: Served) -> bytes:
    """Return the body of POST /inference/v1/generate; `prompt` is int32 [n], shorter than context.

    vLLM clips max_tokens to the context without a word; it is done here, so that it is seen.
    """
    sampling = {
        "max_tokens": min(message.max_tokens, served.context_tokens - len(prompt)),
        "temperature": message.temperature,
        "top_p": message.top_p,
        "top_k": message.top_k,
        "stop_token_ids": list(message.stop_token_ids),
        "seed": message.seed,
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
    }
    body = {
        "request_id": message.request_id,
        "token_ids": prompt,
        "sampling_params": sampling,
        "model": served.model,
        "cache_salt": message.cache_salt or None,
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def engine_id(request_id: str) -> str:
    """Return the name by which a server's engine knows a request; it aborts by no other."""
    return f"generate-tokens-{request_id}"


def read_reply(body: bytes, versions: Versions) -> Reply:
    """Return the completion in a server's answer.

    Raises: BadReply.
    """
    try:
        answer = orjson.loads(body)
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        token_ids = np.array(choice["token_ids"] or [], dtype=np.int32)
        logprobs = _logprobs(choice, token_ids.tolist())
        spans = _spans(choice.get("weight_versions"), len(token_ids), versions)
        details = usage.get("prompt_tokens_details") or {}
        prompt_tokens = int(usage.get("prompt_tokens") or 0)
        cached = int(details.get("cached_tokens") or 0)
    except BadReply:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as wrong:
        raise BadReply(f"the answer cannot be read: {type(wrong).__name__}: {wrong}") from None
    reason = choice.get("finish_reason")
    if reason not in get_args(FinishReason):
        raise BadReply(f"the completion ended by {reason!r}")
    return Reply(token_ids, logprobs, reason, spans, prompt_tokens, cached)


def _logprobs(choice: dict[str, Any], token_ids: list[int]) -> npt.NDArray[np.float32]:
    entries = (choice.get("logprobs") or {}).get("content") or []
    if len(entries) != len(token_ids):
        raise BadReply(f"{len(entries)} log-probabilities for {len(token_ids)} tokens")
    found = [_token(entry) for entry in entries]
    if found != token_ids:
        place = next(at for at, pair in enumerate(zip(found, token_ids, strict=True)) if _odd(pair))
        raise BadReply(f"log-probability {place} is of token {found[place]}, not its own")
    values = [_value(entry.get("logprob")) for entry in entries]
    return np.minimum(np.array(values, dtype=np.float32), np.float32(0.0))


def _odd(pair: tuple[int, int]) -> bool:
    return pair[0] != pair[1]


def _token(entry: dict[str, Any]) -> int:
    if "token_id" in entry:
        return int(entry["token_id"])
    token = str(entry["token"])
    if not token.startswith(TOKEN_MARK):
        raise BadReply(f"a log-probability is of {token[:40]!r}, which is no token ID")
    return int(token.removeprefix(TOKEN_MARK))


def _value(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise BadReply(f"a log-probability is {value!r}")
    if value <= SENTINEL or value > ROUNDING:
        raise BadReply(f"a log-probability is {value}")
    return float(value)


def _spans(found: Any, length: int, versions: Versions) -> Ids:
    if not length:
        return np.zeros((0, 3), dtype=np.int32)
    if found is None:
        if versions.begun != versions.ended:
            raise BadReply("the weights changed, and the server does not say at which token")
        return np.array([[0, length, versions.begun]], dtype=np.int32)
    spans = [_SPAN(each) for each in found]
    rows = [(s.start, s.end, read_version(s.version)) for s in spans if s.end > s.start]
    ends = [0, *(end for _, end, _ in rows)]
    if [start for start, _, _ in rows] != ends[:-1] or ends[-1] != length:
        raise BadReply(f"the weights' versions do not cover {length} tokens: {found}")
    return np.array(rows, dtype=np.int32)


def read_version(version: str) -> int:
    """Return the policy version that a server names; the weights that it started with are 0.

    Raises: BadReply if it is no number.
    """
    if version == UNVERSIONED:
        return 0
    if not version.isdecimal():
        raise BadReply(f"the weights' version is {version[:40]!r}, which is no number")
    return int(version)


def read_failure(status: int, body: bytes) -> Failure:
    """Return what an answer other than 200 means.

    Only a request that is itself at fault is not worth another try: a wrong key, model or path is
    a matter of the server's settings.
    """
    text = f"HTTP {status}: {_said(body)}"
    if status in CALLERS_FAULT:
        return Failure("invalid", text, retry=False)
    return Failure("backend_error", text, retry=True)


def _said(body: bytes) -> str:
    try:
        answer = orjson.loads(body)
        found = answer.get("error", answer.get("detail", answer))
        message = found.get("message", found) if isinstance(found, dict) else found
        return str(message)[:LONGEST]
    except (ValueError, AttributeError):
        return body[:LONGEST].decode(errors="replace")


def read_served(body: bytes) -> Served:
    """Return what the answer of GET /v1/models says.

    Raises: BadReply.
    """
    try:
        first = orjson.loads(body)["data"][0]
        return Served(str(first["id"]), int(first["max_model_len"]))
    except (KeyError, IndexError, TypeError, ValueError) as wrong:
        raise BadReply(f"no model can be read from /v1/models: {wrong!r}") from None


def read_figures(text: str) -> dict[str, float]:
    """Return a server's own figures from GET /metrics, summed over its engines."""
    figures: dict[str, float] = {}
    for name, value in _samples(text):
        if name in GAUGES:
            figures[GAUGES[name]] = figures.get(GAUGES[name], 0.0) + value
    return figures


def _samples(text: str) -> Iterable[tuple[str, float]]:
    for match in _SAMPLE.finditer(text):
        try:
            value = float(match[2])
        except ValueError:
            continue
        if math.isfinite(value):
            yield match[1], value


def check_probe(reply: Reply) -> None:
    """Check a completion that was asked for with top_k 1: its one candidate has probability 1.

    Raises: BadReply if the server gives the log-probabilities before sampling's parameters.
    """
    if not len(reply.token_ids):
        raise BadReply("the probe's answer has no token")
    if (reply.logprobs < -ROUNDING).any():
        raise BadReply(
            f"with top_k 1 the log-probabilities are {reply.logprobs.tolist()}, not 0: "
            "start the server with --logprobs-mode processed_logprobs"
        )
