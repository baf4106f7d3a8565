"""A trainer's prompts, taken from their iterator one by one and only when asked for.

The iterator runs on a thread of its own: one that blocks is noticed, and holds up neither results
nor heartbeats.
"""

import time
from collections import deque
from collections.abc import Iterable
from threading import Condition, Thread

from ..records import Task
from ..sampling import SourceEnd


class Source:
    """An iterator of tasks, behind a thread that starts with the first task that is asked for."""

    def __init__(self, tasks: Iterable[Task], patience_s: float) -> None:
        self._tasks = tasks
        self._patience_s = patience_s
        self._changed = Condition()
        self._ready: deque[Task] = deque()
        self._asked = 0
        self._given = 0
        self._waits_since = 0.0
        self._thread: Thread | None = None
        self._closed = False
        self.end: SourceEnd = ""
        self.error: BaseException | None = None

    def ask(self, prompts: int) -> None:
        """Ask for so many tasks in all."""
        with self._changed:
            if prompts <= self._asked or self._closed:
                return
            if self._given == self._asked:
                self._waits_since = time.monotonic()
            self._asked = prompts
            self._changed.notify_all()
        if self._thread is None:
            self._thread = Thread(target=self._run, name="prompts", daemon=True)
            self._thread.start()

    def take(self, wait_s: float) -> Task | None:
        """Return the next task, waiting a moment for it; None if there is none yet, or no more."""
        with self._changed:
            self._changed.wait_for(self._has_news, wait_s)
            if self._ready:
                return self._ready.popleft()
            silent_s = time.monotonic() - self._waits_since
            if not self.end and self._given < self._asked and silent_s > self._patience_s:
                self.end = "blocked"
            return None

    @property
    def is_over(self) -> bool:
        """Whether no more tasks come, and every one that came was taken."""
        with self._changed:
            return bool(self.end) and not self._ready

    @property
    def why(self) -> str:
        """Why no more tasks come, for people."""
        match self.end:
            case "ended":
                return "the prompts have ended"
            case "failed":
                return f"the prompts' iterator raised {type(self.error).__name__}: {self.error}"
            case "blocked":
                return f"the prompts' iterator gave nothing for {self._patience_s:g} s"
        return ""

    def close(self) -> None:
        """Take no more from the iterator; a call that is under way ends by itself."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _has_news(self) -> bool:
        return bool(self._ready or self.end or self._given >= self._asked)

    def _run(self) -> None:
        try:
            iterator = iter(self._tasks)
            while self._is_wanted():
                task = next(iterator, None)
                if task is None:
                    self._finish("ended", None)
                    return
                self._give(task)
        except BaseException as wrong:  # noqa: BLE001 - told to the trainer by its own thread
            self._finish("failed", wrong)

    def _is_wanted(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._given < self._asked)
            return not self._closed

    def _give(self, task: Task) -> None:
        with self._changed:
            self._ready.append(task)
            self._given += 1
            self._waits_since = time.monotonic()
            self._changed.notify_all()

    def _finish(self, end: SourceEnd, error: BaseException | None) -> None:
        with self._changed:
            self.end = self.end or end
            self.error = error
            self._changed.notify_all()
