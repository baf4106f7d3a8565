"""Reference: the service that people build today, FastAPI returning dicts.

One uvicorn process over loopback TCP, three asyncio queues with worker tasks a stage, everything
in memory. Token IDs, log-probabilities and mask are Python lists, sent as JSON. The return
annotation of the endpoint matters: with it FastAPI serializes through pydantic-core, and the
service is ten times as fast as without.
"""

from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI

from bench import workload
from bench.measure import ReferenceResult
from bench.references import main
from bench.references.http_service import Pipeline, measure
from bench.workload import Trajectory

NAME = "fastapi_dicts"
Rollout = dict[str, Any]  # task_id, then prompt, then the three lists and the reward


def run(seconds: float, in_flight: int, tokens: int) -> ReferenceResult:
    """Measure the reference for `seconds` after its warm-up.

    Raises:
        CandidateError: the service did not start, died or answered with an error.
        WrongRolloutError: a rollout arrived that is not the one asked for.

    """
    return measure(NAME, make_app, _decode, seconds, in_flight, tokens)


def make_app(tokens: int) -> FastAPI:
    """Return the service whose run stage makes trajectories of `tokens` tokens."""

    async def run_stage(rollout: Rollout) -> Rollout:
        return _run(rollout, tokens)

    pipeline = Pipeline([_init, run_stage, _evaluate])
    app = FastAPI(lifespan=pipeline.lifespan)

    @app.post("/rollouts/{task_id}")
    async def rollout(task_id: int) -> dict[str, Any]:
        finished: Rollout = await pipeline.rollout({"task_id": task_id})
        return finished

    return app


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


def _decode(body: bytes) -> tuple[Trajectory, float]:
    rollout = orjson.loads(body)
    trajectory = Trajectory(
        np.array(rollout["token_ids"], np.int32),
        np.array(rollout["logprobs"], np.float32),
        np.array(rollout["loss_mask"], np.uint8),
    )
    return trajectory, rollout["reward"]


if __name__ == "__main__":
    main(run)
