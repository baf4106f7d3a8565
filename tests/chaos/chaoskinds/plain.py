"""Plain functions, which run in threads: `never` returns never, others sleep for `run_s`."""

import time

from nodes.tasks import Context, Output

from . import sleeper
from .executions import count


def run(context: Context) -> Output:
    """Sleep in a thread."""
    count(context)
    payload = context.task.payload
    while payload.get("never"):
        time.sleep(0.05)
    time.sleep(payload.get("run_s", 0.0))
    return Output(trajectory=sleeper.tokens(16))


def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Reward."""
    count(context)
    return Output(reward=1.0)
