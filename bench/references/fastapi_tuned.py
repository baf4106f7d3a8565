"""Reference: the FastAPI service tuned: orjson and uvloop.

The same queues in one process, but arrays stay arrays until orjson writes them as JSON straight
from numpy's memory; uvicorn runs on uvloop and httptools. `fastapi_octets` gives up JSON as well.
"""

import orjson
from fastapi import FastAPI
from fastapi.responses import Response

from bench.measure import ReferenceResult
from bench.references import main
from bench.references.fastapi_dicts import decode
from bench.references.fastapi_octets import Rollout, make_pipeline
from bench.references.http_service import measure

NAME = "fastapi_tuned"


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
    async def rollout(task_id: int) -> Response:
        body = _encode(task_id, await pipeline.rollout(task_id))
        return Response(body, media_type="application/json")

    return app


def _encode(task_id: int, rollout: Rollout) -> bytes:
    made = rollout.trajectory
    answer = {
        "task_id": task_id,
        "token_ids": made.token_ids,
        "logprobs": made.logprobs,
        "loss_mask": made.loss_mask,
        "reward": rollout.reward,
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


if __name__ == "__main__":
    main(run)
