"""Does in run what no handler should; `do` in the payload says what."""

import asyncio
import os
import re
import signal
import time

from nodes.tasks import Context, Output

from . import sleeper
from .executions import count


async def run(context: Context) -> Output:
    """Misbehave."""
    count(context)
    match context.task.payload["do"]:
        case "block the loop":
            time.sleep(3600)  # noqa: ASYNC251 - the point of it
        case "hold the interpreter":
            re.match(r"(a+)+$", "a" * 64 + "b")
        case "swallow the cancel":
            await swallow()
        case "exit":
            os._exit(3)
        case "kill the guardian":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(3600)  # noqa: ASYNC251 - the point of it
        case "leave too much":
            return Output(trajectory=sleeper.tokens(4 * 1024 * 1024))
    return Output(trajectory=sleeper.tokens(16))


async def swallow() -> None:
    """Never end, whoever asks."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


eval = sleeper.eval  # noqa: A001 - the stage's name
