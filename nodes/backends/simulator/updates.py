"""The three steps of a weight update, as a simulated server does them.

Job: pause, change and resume a step loop, and say when each step is done.
Does not know: sockets or a clock. There are no weights: only their version changes.
Invariants: each step of an update is answered once it is done, and a repeat like the first time.
Weights change only after a pause is complete; nothing runs between that and the resume.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

from ...inference.messages import Pause, Resume, StepName, UpdateStep, UpdateWeights
from .schedule import Request
from .stepping import StepLoop

Work = TypeVar("Work")
REMEMBERED = 32  # answers to repeats: those of the last ten updates


class Updates(Generic[Work]):
    """What was asked of a loop, and what is done of it."""

    def __init__(self, loop: StepLoop[Work]) -> None:
        self._loop = loop
        self._done: OrderedDict[tuple[str, StepName], UpdateStep] = OrderedDict()
        self._answers: list[UpdateStep] = []
        self._pausing = ""

    def pause(self, asked: Pause, now: float) -> list[Request[Work]]:
        """Begin a pause; return the requests that it aborted."""
        if self._repeat(asked.update_id, "pause") or asked.update_id == self._pausing:
            return []
        self._pausing = asked.update_id
        self._loop.pause("no_new" if asked.mode == "wait" else "closed")
        return self._loop.abort_begun(now) if asked.mode == "abort" else []

    def change(self, asked: UpdateWeights) -> None:
        """Take other weights, if the pause is complete."""
        if self._repeat(asked.update_id, "update_weights"):
            return
        try:
            self._loop.update(asked.policy_version)
        except ValueError as wrong:
            version = self._loop.version
            refusal = UpdateStep(asked.update_id, "update_weights", version, str(wrong))
            self._answers.append(refusal)
        else:
            self._did(asked.update_id, "update_weights")

    def resume(self, asked: Resume, now: float) -> None:
        """Run again, unless this very resume was done before."""
        if self._repeat(asked.update_id, "resume"):
            return
        self._pausing = ""
        self._loop.resume(now)
        self._did(asked.update_id, "resume")

    def settle(self) -> list[UpdateStep]:
        """Return the answers that are due by now."""
        if self._pausing and self._loop.is_still:
            self._did(self._pausing, "pause")
            self._pausing = ""
        answers, self._answers = self._answers, []
        return answers

    def clear(self) -> None:
        """Forget what was asked and done; a loop that was cleared is not paused."""
        self._pausing = ""
        self._answers.clear()
        self._done.clear()

    def _repeat(self, update_id: str, step: StepName) -> bool:
        known = self._done.get((update_id, step))
        if known is None:
            return False
        self._answers.append(known)
        return True

    def _did(self, update_id: str, step: StepName) -> None:
        answer = UpdateStep(update_id, step, self._loop.version)
        self._done[update_id, step] = answer
        self._answers.append(answer)
        if len(self._done) > REMEMBERED:
            self._done.popitem(last=False)
