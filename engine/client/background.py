"""A thread that moves a client's messages while its caller works on a batch."""

from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType

REST_S = 0.002  # between two turns: whoever waits for the client has it then


class Background:
    """Calls `turn` over and over while the block runs; what it raises is raised at the end."""

    def __init__(self, turn: Callable[[], None]) -> None:
        self._turn = turn
        self._over = Event()
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="rollmq client", daemon=True)

    def __enter__(self) -> None:
        """Start."""
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop and wait for the turn under way. Raises: what a turn raised."""
        self._over.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._over.wait(REST_S):
                self._turn()
        except BaseException as wrong:  # noqa: BLE001 - raised by the caller's own thread
            self._error = wrong
