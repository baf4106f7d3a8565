"""What a vLLM server is sent, and what its answers mean."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.arrays import array_buffer
from nodes.backends.prompt import read_prompt
from nodes.backends.vllm.wire import (
    BadReply,
    Served,
    Versions,
    check_probe,
    read_failure,
    read_figures,
    read_reply,
    read_served,
    write_request,
)
from nodes.inference.messages import Generate

RECORDED = Path(__file__).parent.parent / "golden" / "vllm"
SAME = Versions(4, 4)
SHAPES = ("0.31", "0.32")


def entry(token: int, logprob: object, shape: str) -> dict[str, Any]:
    named = (
        {"token": f"token_id:{token}", "bytes": None} if shape == "0.31" else {"token_id": token}
    )
    return {**named, "logprob": logprob, "top_logprobs": []}


def answer(ids: list[int], logprobs: list[object], shape: str = "0.32", **more: Any) -> bytes:
    entries = [entry(*pair, shape) for pair in zip(ids, logprobs, strict=True)]
    choice = {"token_ids": ids, "logprobs": {"content": entries}, "finish_reason": "stop", **more}
    details = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    return json.dumps({"choices": [choice], "usage": details}).encode()


@pytest.mark.parametrize("file", sorted(RECORDED.glob("*.json")), ids=lambda file: file.stem)
def test_a_recorded_answer_is_read(file: Path) -> None:
    reply = read_reply(file.read_bytes(), SAME)
    told = json.loads(file.read_bytes())["choices"][0]
    assert reply.token_ids.tolist() == told["token_ids"]
    expected = [each["logprob"] for each in told["logprobs"]["content"]]
    assert reply.logprobs.tolist() == np.array(expected, dtype=np.float32).tolist()
    assert reply.policy_spans[-1][1] == len(reply.token_ids)


def test_an_answer_was_recorded_at_least_once() -> None:
    assert list(RECORDED.glob("*.json"))


@pytest.mark.parametrize("shape", SHAPES)
@given(pairs=st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-500, 0))))
def test_an_aligned_answer_is_read_in_both_shapes(
    shape: str, pairs: list[tuple[int, float]]
) -> None:
    ids, logprobs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    reply = read_reply(answer(ids, list(logprobs), shape), SAME)
    assert reply.token_ids.tolist() == ids
    assert reply.logprobs.tolist() == np.array(logprobs, dtype=np.float32).tolist()
    assert (reply.prompt_tokens, reply.cached_tokens) == (9, 4)
    assert reply.policy_spans.tolist() == ([[0, len(ids), 4]] if ids else [])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "logprob", [None, -9999.0, -12000.0, 0.5, "x", True, float("nan"), float("-inf")]
)
def test_a_log_probability_that_is_none_is_refused(shape: str, logprob: object) -> None:
    with pytest.raises(BadReply):
        read_reply(answer([5, 6], [-0.5, logprob], shape), SAME)


def test_a_log_probability_that_rounding_put_above_0_is_0() -> None:
    assert read_reply(answer([5], [1e-6]), SAME).logprobs.tolist() == [0.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_log_probabilities_of_other_tokens_are_refused(shape: str) -> None:
    body = json.loads(answer([5, 6], [-0.5, -0.5], shape))
    body["choices"][0]["token_ids"] = [5, 7]
    with pytest.raises(BadReply, match="log-probability 1 is of token 6"):
        read_reply(json.dumps(body).encode(), SAME)


@pytest.mark.parametrize("change", [{"logprobs": None}, {"logprobs": {"content": None}}])
def test_an_answer_without_log_probabilities_is_refused(change: dict[str, Any]) -> None:
    body = json.loads(answer([5, 6], [-0.5, -0.5]))
    body["choices"][0].update(change)
    with pytest.raises(BadReply, match="0 log-probabilities for 2 tokens"):
        read_reply(json.dumps(body).encode(), SAME)


def test_decoded_text_in_place_of_a_token_id_is_refused() -> None:
    body = json.loads(answer([5], [-0.5]))
    body["choices"][0]["logprobs"]["content"] = [{"token": "five", "logprob": -0.5}]
    with pytest.raises(BadReply, match="no token ID"):
        read_reply(json.dumps(body).encode(), SAME)


@pytest.mark.parametrize("reason", ["error", "repetition", None])
def test_an_end_that_is_none_of_ours_is_refused(reason: str | None) -> None:
    with pytest.raises(BadReply, match="ended by"):
        read_reply(answer([5], [-0.5], finish_reason=reason), SAME)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": 7}']
)
def test_an_answer_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(BadReply):
        read_reply(body, SAME)


def test_spans_name_the_versions_that_sampled() -> None:
    spans = [
        {"version": "default", "start": 0, "end": 1},
        {"version": "7", "start": 1, "end": 3},
    ]
    reply = read_reply(answer([5, 6, 7], [-0.5] * 3, weight_versions=spans), Versions(0, 7))
    assert reply.policy_spans.tolist() == [[0, 1, 0], [1, 3, 7]]


@pytest.mark.parametrize(
    "spans",
    [
        [{"version": "7", "start": 0, "end": 1}],
        [{"version": "7", "start": 1, "end": 2}],
        [{"version": "step-7", "start": 0, "end": 2}],
        [{"version": "7", "start": 0, "end": 1}, {"version": "8", "start": 0, "end": 2}],
    ],
)
def test_spans_that_do_not_cover_the_tokens_are_refused(spans: list[dict[str, Any]]) -> None:
    with pytest.raises(BadReply, match="version"):
        read_reply(answer([5, 6], [-0.5, -0.5], weight_versions=spans), SAME)


def test_without_spans_a_change_of_weights_in_between_is_refused() -> None:
    with pytest.raises(BadReply, match="weights changed"):
        read_reply(answer([5], [-0.5]), Versions(4, 5))


def request(prompt: list[int], **wish: Any) -> tuple[Generate, list[Any]]:
    buffer, body = array_buffer("token_ids", np.array(prompt, dtype=np.int32))
    return Generate("t-1", "s", buffers=(buffer,), **{"max_tokens": 50, **wish}), [body]


def test_a_request_asks_for_what_was_asked_and_no_more_than_fits() -> None:
    message, body = request([1, 2, 3], stop_token_ids=(2,), seed=7, top_k=5, cache_salt="v3")
    sent = json.loads(write_request(message, read_prompt(message, body), Served("tiny", 20)))
    assert sent["token_ids"] == [1, 2, 3]
    assert (sent["request_id"], sent["model"], sent["cache_salt"]) == ("t-1", "tiny", "v3")
    assert sent["sampling_params"] == {
        "max_tokens": 17,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 5,
        "stop_token_ids": [2],
        "seed": 7,
        "logprobs": 0,
        "detokenize": False,
    }


def test_no_salt_is_sent_where_there_is_none() -> None:
    message, body = request([1])
    sent = json.loads(write_request(message, read_prompt(message, body), Served("tiny", 20)))
    assert sent["cache_salt"] is None


@pytest.mark.parametrize(
    ("status", "code", "retry"),
    [(400, "invalid", False), (422, "invalid", False), (413, "invalid", False)]
    + [(status, "backend_error", True) for status in (401, 403, 404, 429, 500, 502, 503)],
)
def test_only_a_request_that_is_at_fault_is_not_tried_again(
    status: int, code: str, retry: bool
) -> None:
    failure = read_failure(status, b'{"error": {"message": "no", "code": 400}}')
    assert (failure.code, failure.retry, failure.message) == (code, retry, f"HTTP {status}: no")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b'{"detail": "no"}'])
def test_any_refusal_has_a_message(body: bytes) -> None:
    assert read_failure(500, body).message.startswith("HTTP 500")


def test_figures_are_summed_over_engines_and_others_left_out() -> None:
    text = """\
# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 2.0
vllm:prefix_cache_hits_total{engine="0",model_name="a b"} 1.2e+03
vllm:kv_cache_usage_perc NaN
process_cpu_seconds_total 7.0
"""
    assert read_figures(text) == {"running": 5.0, "prefix_hits": 1200.0}


def test_the_model_and_its_context_are_read() -> None:
    body = b'{"data": [{"id": "tiny", "max_model_len": 4096}]}'
    assert read_served(body) == Served("tiny", 4096)
    with pytest.raises(BadReply):
        read_served(b'{"data": []}')


def test_a_probe_tells_log_probabilities_from_before_sampling() -> None:
    check_probe(read_reply(answer([5, 6], [0.0, -1e-6]), SAME))
    with pytest.raises(BadReply, match="--logprobs-mode processed_logprobs"):
        check_probe(read_reply(answer([5, 6], [0.0, -0.7]), SAME))
    with pytest.raises(BadReply, match="no token"):
        check_probe(read_reply(answer([], []), SAME))
