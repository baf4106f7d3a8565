"""The steps of a weight update, carried out on one vLLM server.

    pause -> update_weights -> resume

Job: do each step once, in the order of arrival, and answer each message.
Does not know: the router's plan, or what is running.
Invariants: a step that was done is not done again: its repeat gets the first answer. A failed step
names its error and leaves the version as it is. Only the last MOST_STEPS steps are remembered.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.logs import get_logger

from ...inference.messages import Pause, Resume, UpdateStep, UpdateWeights
from .http import HttpFailed, Unreachable, VllmHttp

MOST_STEPS = 64
Step = Pause | UpdateWeights | Resume


class NotDone(Exception):  # noqa: N818 - becomes an answer
    """A step that was not even tried; says why."""


@dataclass(slots=True)
class Weights:
    """The weights that a server holds: their version, and where they came from, if known."""

    version: int = 0
    source: str = ""


class Updates:
    """Steps of updates, one after the other."""

    def __init__(
        self, http: VllmHttp, weights: Weights, answer: Callable[[UpdateStep], None]
    ) -> None:
        self._http = http
        self._weights = weights
        self._answer = answer
        self._log = get_logger()
        self._steps: dict[tuple[str, str], asyncio.Task[UpdateStep]] = {}
        self._last: asyncio.Task[UpdateStep] | None = None
        self._paused = False

    def take(self, step: Step) -> None:
        """Do a step after those before it; answer at its end, or at once if it was done."""
        key = (step.update_id, step.kind)
        known = self._steps.get(key)
        if known is None:
            self._last = asyncio.get_running_loop().create_task(self._do(step, self._last))
            self._steps[key] = self._last
            self._forget()
        elif known.done() and not known.cancelled():
            self._answer(known.result())

    def cancel(self) -> None:
        """Give up every step that is not over."""
        for task in self._steps.values():
            task.cancel()

    def _forget(self) -> None:
        for key in list(self._steps)[: max(0, len(self._steps) - MOST_STEPS)]:
            del self._steps[key]

    async def _do(self, step: Step, before: asyncio.Task[UpdateStep] | None) -> UpdateStep:
        if before is not None:
            await asyncio.wait({before})
        error = ""
        try:
            await self._carry_out(step)
        except (Unreachable, HttpFailed, TimeoutError, ValueError, NotDone) as wrong:
            error = f"{step.kind}: {wrong}"
        self._log.info("update step", step=step.kind, update_id=step.update_id, error=error)
        answer = UpdateStep(step.update_id, step.kind, self._weights.version, error)
        self._answer(answer)
        return answer

    async def _carry_out(self, step: Step) -> None:
        match step:
            case Pause(_, mode):
                await self._http.pause(mode)
                self._paused = True
            case UpdateWeights() if not self._paused:
                raise NotDone("weights change only while sampling is paused")
            case UpdateWeights(_, version, source):
                await load(self._http, Weights(version, source))
                self._weights.version, self._weights.source = version, source
            case Resume():
                await self._http.resume()
                self._paused = False


async def load(http: VllmHttp, weights: Weights) -> None:
    """Make a server hold these weights; without a source, only their version is set.

    The prefix cache is emptied as far as no request holds it. What frozen requests hold stays
    theirs: the router's salts keep it from other sessions.

    Raises: Unreachable, HttpFailed, TimeoutError; NotDone if a server on this machine would find
        no weights there: vLLM's engine does not survive that.
    """
    if weights.source:
        if http.is_local:
            _expect_weights(weights.source)
        await http.reload(weights.source)
    await http.set_version(weights.version)
    if not await http.forget_prefixes():
        get_logger().info("prefixes of frozen requests are kept")


def _expect_weights(source: str) -> None:
    directory = Path(source)
    is_path = directory.is_absolute() or source.startswith(".") or directory.exists()
    if is_path and not (list(directory.glob("*.safetensors")) or list(directory.glob("*.bin"))):
        raise NotDone(f"no weights in {source}")
