"""Tasks into submits, as far as the broker has room: for `run` of both clients.

No socket and no clock: it asks the core, and the core asks the broker.
"""

import sys
from collections.abc import Callable, Iterable

from ..records import Task
from .core import Core, Submission
from .requests import submit_message

IN_FLIGHT = 64  # submits that wait for their answer at once


class Feed:
    """A stream of tasks behind a core.

    in_flight: rollouts submitted and not yet received at the most; no bound if None.
    group_id: names a task's group; a fresh name if None.
    """

    def __init__(
        self,
        core: Core,
        tasks: Iterable[Task],
        group_size: int,
        in_flight: int | None,
        group_id: Callable[[Task], str] | None,
    ) -> None:
        self._core = core
        self._tasks = iter(tasks)
        self._group_size = group_size
        self._most = max(in_flight or sys.maxsize, group_size)
        self._group_id = group_id
        self._flying: list[Submission] = []
        self._exhausted = False

    @property
    def is_over(self) -> bool:
        """Whether every task is submitted and accepted, and the broker owes nothing."""
        return self._exhausted and not self._flying and self._core.idle

    def submit(self) -> bool:
        """Submit what there is room for; return whether anything was.

        Raises: what a submit was refused with.
        """
        self._flying = [submission for submission in self._flying if not answered(submission)]
        before = len(self._flying)
        while not self._exhausted and self._has_room():
            task = next(self._tasks, None)
            if task is None:
                self._exhausted = True
                break
            group = self._group_id(task) if self._group_id else None
            message, body = submit_message(task, self._group_size, group, None, 0)
            self._flying.append(self._core.submit(message, body, wait=True))
        return len(self._flying) > before

    def _has_room(self) -> bool:
        asked = sum(len(submission.message.rollout_ids) for submission in self._flying)
        held = max(0, self._core.owed) + asked + self._group_size
        return len(self._flying) < IN_FLIGHT and held <= self._most


def answered(submission: Submission) -> bool:
    """Return whether a submit was accepted. Raises: what it was refused with."""
    if submission.error is not None:
        raise submission.error
    return submission.accepted
