"""Whatever a handler returns, the broker gets a result that it takes."""

import asyncio
import os
from typing import Any

import numpy as np
import pytest

from engine.messages import RESULTS, StageResult, Work
from engine.records import Buffer, Usage
from engine.wire import Codec, json_buffer
from nodes.stage.attempt import Attempt
from nodes.stage.table import SlotTable, size_bytes
from nodes.tasks import Context, Output

CODEC: Codec[StageResult] = Codec(RESULTS)
WORK = Work("b", "r", "g", "t", "kind", "run", 1, 60.0, ())
LONG = "x" * 65
MESSAGE_BYTES = 1000


def framed(body: list[bytes], changes: dict[str, Any]) -> tuple[StageResult, list[Any]]:
    attempt = Attempt(WORK, "w", "run-0", None, 0, None)  # type: ignore[arg-type]
    fields = {"usage": Usage(1, 2, 3.0), **changes}
    ended = StageResult("w", "r", "run", 1, "done", 3.0, **fields)
    return CODEC.decode(attempt.frames((ended, body), MESSAGE_BYTES))


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ([], {}),
        ([], {"final": True, "pinned": True, "reward": 1.0, "rewards": {"a": 0.5}}),
        ([b"{}"], {"buffers": (Buffer("run", "json", (2,)),)}),
        ([b"1"], {"buffers": (Buffer("mine", "uint8", (1,)),)}),
    ],
)
def test_a_good_result_is_sent_as_it_is(body: list[bytes], changes: dict[str, Any]) -> None:
    result, frames = framed(body, changes)
    assert result.status == "done"
    assert frames == body
    assert all(getattr(result, name) == value for name, value in changes.items())


@pytest.mark.parametrize(
    ("body", "changes", "why"),
    [
        ([b"1"], {"buffers": (Buffer(LONG, "uint8", (1,)),)}, "buffers.0.name"),
        ([b"1"], {"buffers": (Buffer("", "uint8", (1,)),)}, "buffers.0.name"),
        ([b"1"] * 2, {"buffers": (Buffer("run", "uint8", (1,)),) * 2}, "names repeat"),
        ([bytes(2000)], {"buffers": (Buffer("a", "uint8", (2000,)),)}, "2000 bytes"),
        ([], {"final": 1}, "final"),
        ([], {"pinned": None}, "pinned"),
        ([], {"outcome": "fine"}, "outcome"),
        ([], {"trainable": "yes"}, "trainable"),
        ([], {"rewards": {"a": "much"}}, "rewards.a"),
        ([], {"rewards": {1: 1.0}}, "not a string"),
        ([], {"rewards": {"\ud800": 1.0}}, "surrogates not allowed"),
        ([], {"usage": Usage(-1, 0, 0.0)}, "usage.turns"),
        ([], {"usage": Usage(2**70, 0, 0.0)}, "usage.turns"),
        ([], {"usage": Usage(0, 1.5, 0.0)}, "usage.tokens"),  # type: ignore[arg-type]
        ([], {"usage": Usage(np.int64(1), 0, 0.0)}, "numpy.int64"),  # type: ignore[arg-type]
    ],
)
def test_a_result_that_would_be_refused_is_sent_as_a_failure(
    body: list[bytes], changes: dict[str, Any], why: str
) -> None:
    result, frames = framed(body, changes)
    assert (result.status, result.retry, frames) == ("failed", False, [])
    assert result.failure is not None
    assert result.failure.boundary == "handler"
    assert why in result.failure.message


def ended(output: Output, *elsewhere: str) -> StageResult:
    async def handler(_: Context) -> Output:
        return output

    buffer, task = json_buffer("task", {})
    work = Work("b", "r", "g", "t", "kind", "init", 1, 60.0, (buffer,))
    memory = os.memfd_create("slots")
    os.ftruncate(memory, size_bytes(2))
    attempt = Attempt(work, "w", "init-0", SlotTable(memory, 2), 1, None, elsewhere)
    return asyncio.run(attempt.run([task], lambda _: handler))[0]


@pytest.mark.parametrize("output", [Output(pinned=True, final=True), Output()])
def test_only_what_later_stages_need_must_be_on_the_host(output: Output) -> None:
    assert ended(output, "eval").status == "done"


def test_a_pin_to_a_host_without_a_later_stages_worker_fails_at_once() -> None:
    assert ended(Output(pinned=True)).status == "done"
    failed = ended(Output(pinned=True), "run", "eval")
    assert (failed.status, failed.retry) == ("failed", False)
    assert failed.failure is not None
    assert "no worker of run, eval is on the host of init-0" in failed.failure.message
