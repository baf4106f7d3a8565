"""Messages of the inference side that cannot be taken, and models that are never asked."""

import asyncio
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from nodes.inference.client import LazyModel
from nodes.inference.messages import GenerateFailed
from nodes.inference.refused import LONGEST, Refusals, answer_to
from nodes.tasks import Sampling

KIND = b"rollmq/1 generate"


@pytest.mark.parametrize(
    "frames",
    [
        [KIND, b'{"request_id": "r-1"}'],
        [KIND, b'{"request_id": "r-1", "more": 1}', b"body"],
        [b"rollmq/2 generate", b'{"request_id": "r-1", "unknown": {}}'],
    ],
)
def test_a_generate_that_names_its_request_is_answered_as_invalid(frames: list[bytes]) -> None:
    assert answer_to(frames, "why") == GenerateFailed("r-1", "invalid", "why", retry=False)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [KIND],
        [b"", b""],
        [KIND, b""],
        [KIND, b"{"],
        [KIND, b"[]"],
        [KIND, b"null"],
        [KIND, b"{}"],
        [KIND, b'{"request_id": 1}'],
        [KIND, b'{"request_id": ""}'],
        [KIND, b'{"request_id": "%s"}' % (b"x" * 201)],
        [b"rollmq/1 release", b'{"request_id": "r-1"}'],
        [b"\xff generate ", b'{"request_id": "r-1"}'],
    ],
)
def test_what_names_no_request_has_no_answer(frames: list[bytes]) -> None:
    assert answer_to(frames, "why") is None


def test_an_answers_reason_is_cut() -> None:
    answer = answer_to([KIND, b'{"request_id": "r-1"}'], "x" * 10_000)
    assert answer is not None
    assert len(answer.message) == LONGEST


def test_refused_messages_are_told_of_once_a_second_and_none_is_left_out() -> None:
    refusals = Refusals()
    with capture_logs() as logs:
        for number in range(100):
            refusals.add(f"no {number}", 10.0 + number / 1000)
        refusals.tell(10.9)
        refusals.tell(11.0)
        refusals.tell(20.0)
    assert [(log["total"], log["last"]) for log in logs] == [(1, "no 0"), (100, "no 99")]
    assert refusals.total == 100


class Recorded:
    """A model that records what it is asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def generate(self, session: str, token_ids: Any, sampling: Sampling) -> str:
        self.calls.append(f"generate {session}")
        return "generation"

    async def release(self, session: str) -> None:
        self.calls.append(f"release {session}")

    async def close(self) -> None:
        self.calls.append("close")


def test_a_lazy_model_connects_once_and_only_for_a_completion() -> None:
    made: list[Recorded] = []

    def connect() -> Any:
        made.append(Recorded())
        return made[-1]

    async def scenario() -> None:
        model = LazyModel(connect)
        await model.release("s")
        await model.close()
        assert made == []
        for _ in range(2):
            found: Any = await model.generate("s", np.zeros(1, dtype=np.int32), Sampling())
            assert found == "generation"
        await model.release("s")
        await model.close()
        await model.close()

    asyncio.run(scenario())
    [model] = made
    assert model.calls == ["generate s", "generate s", "release s", "close"]
