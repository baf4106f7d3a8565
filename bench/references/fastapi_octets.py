"""Reference: the FastAPI service, giving up JSON.

The same queues in one process, but arrays stay arrays: the answer is one octet-stream of header
and buffers. The endpoint is a plain route, which skips FastAPI's dependencies and validation and
brings about a third more than an endpoint that returns a Response. uvicorn runs on uvloop and
httptools.
"""

from dataclasses import dataclass

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from bench import workload
from bench.measure import ReferenceResult
from bench.references import main
from bench.references.http_service import Pipeline, measure
from bench.workload import HEADER, Trajectory

NAME = "fastapi_octets"
PATH = "/rollouts/{task_id:int}"


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the eval stage hands to the endpoint."""

    trajectory: Trajectory
    reward: float


def run(seconds: float, in_flight: int, tokens: int) -> ReferenceResult:
    """Measure the reference for `seconds` after its warm-up.

    Raises:
        CandidateError: the service did not start, died or answered with an error.
        WrongRolloutError: a rollout arrived that is not the one asked for.

    """
    return measure(NAME, make_app, _decode, seconds, in_flight, tokens)


def make_app(tokens: int) -> FastAPI:
    """Return the service whose run stage makes trajectories of `tokens` tokens."""
    pipeline = make_pipeline(tokens)

    async def rollout(request: Request) -> Response:
        task_id = request.path_params["task_id"]
        body = _encode(task_id, await pipeline.rollout(task_id))
        return Response(body, media_type="application/octet-stream")

    app = FastAPI(lifespan=pipeline.lifespan)
    app.add_route(PATH, rollout, methods=["POST"])
    return app


def make_pipeline(tokens: int) -> Pipeline:
    """Return the three stages on arrays."""

    async def run_stage(prompt: NDArray[np.int32]) -> Trajectory:
        return workload.run(prompt, tokens)

    return Pipeline([_init, run_stage, _evaluate])


async def _init(task_id: int) -> NDArray[np.int32]:
    return workload.init(task_id)


async def _evaluate(trajectory: Trajectory) -> Rollout:
    token_ids = trajectory.token_ids
    return Rollout(trajectory, workload.evaluate(int(token_ids[0]), int(token_ids[-1])))


def _encode(task_id: int, rollout: Rollout) -> bytes:
    made = rollout.trajectory
    header = HEADER.pack(task_id, rollout.reward)
    return b"".join((header, made.token_ids.data, made.logprobs.data, made.loss_mask.data))


def _decode(body: bytes) -> tuple[Trajectory, float]:
    _, reward = HEADER.unpack_from(body)
    return workload.unpack(memoryview(body)[HEADER.size :]), reward


if __name__ == "__main__":
    main(run)
