"""Reference: the service that people build today, FastAPI returning dicts.

One uvicorn process over loopback TCP, three asyncio queues with worker tasks a stage, everything
in memory. Token IDs, log-probabilities and mask are Python lists in a dict that the endpoint
returns, as FastAPI's own tutorial does. `fastapi_annotated` is the same with a return annotation.
"""

from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI

from bench import workload
from bench.measure import ReferenceResult
from bench.references import main
from bench.references.http_service import Pipeline, measure
from bench.workload import Lists

NAME = "fastapi_dicts"
Rollout = dict[str, Any]  # task_id, then prompt, then the three lists and the reward


def run(seconds: float, in_flight: int, tokens: int) -> ReferenceResult:
    """Measure the reference for `seconds` after its warm-up.

    Raises:
        CandidateError: the service did not start, died or answered with an error.
        WrongRolloutError: a rollout arrived that is not the one asked for.

    """
    return measure(NAME, make_app, decode, seconds, in_flight, tokens)


def make_app(tokens: int) -> FastAPI:
    """Return the service whose run stage makes trajectories of `tokens` tokens."""
    pipeline = make_pipeline(tokens)
    app = FastAPI(lifespan=pipeline.lifespan)

    @app.post("/rollouts/{task_id}")
    async def rollout(task_id: int):  # noqa: ANN202 - what this reference is about
        return await pipeline.rollout({"task_id": task_id})

    return app


def make_pipeline(tokens: int) -> Pipeline:
    """Return the three stages on dicts of lists."""

    async def run_stage(rollout: Rollout) -> Rollout:
        return _run(rollout, tokens)

    return Pipeline([_init, run_stage, _evaluate])


async def _init(rollout: Rollout) -> Rollout:
    return {**rollout, "prompt": workload.init(rollout["task_id"]).tolist()}


def _run(rollout: Rollout, tokens: int) -> Rollout:
    trajectory = workload.run(np.array(rollout["prompt"], np.int32), tokens)
    return {
        "task_id": rollout["task_id"],
        "token_ids": trajectory.token_ids.tolist(),
        "logprobs": trajectory.logprobs.tolist(),
        "loss_mask": trajectory.loss_mask.tolist(),
    }


async def _evaluate(rollout: Rollout) -> Rollout:
    token_ids = rollout["token_ids"]
    return {**rollout, "reward": workload.evaluate(token_ids[0], token_ids[-1])}


def decode(body: bytes) -> tuple[Lists, float]:
    """Return the lists and the reward of an answer; a trainer would still make arrays of them."""
    rollout = orjson.loads(body)
    lists = Lists(rollout["token_ids"], rollout["logprobs"], rollout["loss_mask"])
    return lists, rollout["reward"]


if __name__ == "__main__":
    main(run)
