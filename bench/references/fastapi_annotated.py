"""Reference: the same service as `fastapi_dicts`, with a return annotation on its endpoint.

With it FastAPI serializes through pydantic-core instead of walking every list in Python, which
makes the service about ten times as fast; few who return dicts know.
"""

from typing import Any

from fastapi import FastAPI

from bench.measure import ReferenceResult
from bench.references import main
from bench.references.fastapi_dicts import Rollout, decode, make_pipeline
from bench.references.http_service import measure

NAME = "fastapi_annotated"


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
    async def rollout(task_id: int) -> dict[str, Any]:
        finished: Rollout = await pipeline.rollout({"task_id": task_id})
        return finished

    return app


if __name__ == "__main__":
    main(run)
