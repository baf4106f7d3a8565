"""Task kind `reasoning`: questions of the package reasoning-gym, scored by its own scorers.

    payload: {"dataset": "gcd", "config": {}, "seed": 7, "size": 500, "index": 3, "question": "...",
              "turns": 1, "max_tokens": 512, "temperature": 1.0, "context_tokens": 8192}

The last four may be left out. A second turn asks the model to check its answer.

Job: prompt, conversation and score.
Does not know: the model behind the router, or the expected answer before eval.
Invariants: token IDs are canonical; the prompt of turn 2 starts with the prompt and the completion
of turn 1, verbatim. A completion cut off by its length ends the conversation as truncated. An
answer that cannot be read is worth 0: that is the model's doing. A scorer that raises is not.
"""

import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import orjson

from engine.errors import BoundaryError
from engine.typed import AtLeast, Count, Id, Length, Mismatch, compile_decoder

from .. import tokens
from ..agent import ChatmlTemplate, Conversation, Limits, Message, converse
from . import Context, Output, Sampling

SYSTEM = (
    "You solve problems. Think between <think> and </think>, then give nothing but the final "
    "answer between <answer> and </answer>."
)
CHECK = "Check your answer, then give it again between <answer> and </answer>."
_ONE_BUILDS = threading.Lock()  # a group's members ask for the same question at the same time
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Payload:
    """What a task of this kind carries."""

    dataset: Annotated[Id, "reasoning-gym's name of the dataset"]
    config: Annotated[str, "its configuration, as JSON"]
    seed: Annotated[int, "of the dataset"]
    size: Annotated[int, AtLeast(1), "of the dataset"]
    index: Annotated[Count, "the question within it"]
    question: Annotated[str, Length(1, 1_000_000), "as the dataset asks it"]
    turns: Annotated[int, AtLeast(1), "model calls at most"] = 1
    max_tokens: Annotated[int, AtLeast(1), "to sample in each turn"] = 512
    temperature: Annotated[float, AtLeast(0), "of sampling"] = 1.0
    context_tokens: Annotated[int, AtLeast(2), "prompt and completion together"] = 8192


_DECODE = compile_decoder(Payload)


def read_payload(payload: dict[str, Any]) -> Payload:
    """Return a task's payload.

    Raises: BoundaryError("handler") naming the field at fault; trying again does not help.
    """
    try:
        config = orjson.dumps(payload.get("config", {}), option=orjson.OPT_SORT_KEYS).decode()
        return _DECODE({**payload, "config": config})
    except (Mismatch, orjson.JSONEncodeError) as wrong:
        raise BoundaryError("handler", f"payload: {wrong}", retry=False) from None


async def init(context: Context) -> Output:
    """Check the payload; there is nothing to prepare."""
    read_payload(context.task.payload)
    return Output()


async def run(context: Context) -> Output:
    """Let the model answer, and check its answer if the task asks for more than one turn."""
    payload, vocabulary = read_payload(context.task.payload), tokens.load()
    limits = Limits(
        turns=payload.turns,
        turn_tokens=payload.max_tokens,
        tokens=payload.turns * payload.max_tokens,
        context_tokens=payload.context_tokens,
    )

    async def check(talk: Conversation) -> list[Message]:
        return [Message("user", CHECK)] if len(talk.turns) < payload.turns else []

    messages = [Message("system", SYSTEM), Message("user", payload.question)]
    sampling = Sampling(temperature=payload.temperature)
    template = ChatmlTemplate(vocabulary)
    result = await converse(context, template, [], limits, messages, sampling=sampling, reply=check)
    return result.output()


def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Score the last answer of the last completion with the dataset's own scorer.

    Raises: BoundaryError("evaluator") if the dataset has changed or its scorer raises.
    """
    payload = read_payload(context.task.payload)
    answer = last_answer(context)
    reward = score(payload, answer)
    return Output(data={"answer": answer}, reward=reward, rewards={payload.dataset: reward})


def last_answer(context: Context) -> str | None:
    """Return what stands in the last pair of answer marks of the last turn, if any does."""
    assert context.trajectory is not None
    start, end = context.data["run"]["turns"][-1]["completion"]
    text = tokens.load().decode(context.trajectory.token_ids[start:end])
    found = _ANSWER.findall(text)
    return found[-1].strip() if found else None


def score(payload: Payload, answer: str | None) -> float:
    """Return the reward of an answer, from 0 to 1.

    Raises: BoundaryError("evaluator").
    """
    try:
        with _ONE_BUILDS:
            dataset = _dataset(payload.dataset, payload.config, payload.seed, payload.size)
            entry = _entry(dataset, payload.index)
        reward = float(dataset.score_answer(answer, entry))
    except Exception as wrong:
        message = f"{payload.dataset}: {type(wrong).__name__}: {wrong}"
        raise BoundaryError("evaluator", message, retry=False) from wrong
    if entry["question"] != payload.question:
        message = f"{payload.dataset}[{payload.index}] is another question here"
        raise BoundaryError("evaluator", message, retry=False)
    return reward


@lru_cache(maxsize=64)
def _dataset(name: str, config: str, seed: int, size: int) -> Any:
    from reasoning_gym import create_dataset  # noqa: PLC0415 - seconds that only eval has to pay

    return create_dataset(name, **orjson.loads(config), seed=seed, size=size)


@lru_cache(maxsize=1024)
def _entry(dataset: Any, index: int) -> dict[str, Any]:
    entry: dict[str, Any] = dataset[index]
    return entry
