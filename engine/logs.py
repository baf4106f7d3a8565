"""Logs of one process: key=value on a terminal, one JSON object a line elsewhere.

Job: configure structlog once, at the start of a node's main; hand out loggers. Everybody else has
them from here: structlog imports rich for a renderer that is not used, which is an eighth of the
time that a node takes to start.
Does not know: what is logged.
Invariants: every event carries its node's name, a level and a UTC time; logs go to stderr, so that
standard output stays a program's answer. A log that cannot be written, on a full disk say, ends no
process.
"""

import contextlib
import logging
import sys
from typing import Any, TextIO

_RICH: Any = sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
import structlog  # noqa: E402
from structlog.types import EventDict  # noqa: E402

if _RICH is None:
    del sys.modules["rich"]  # whoever wants it, as the command line does, imports it

get_logger = structlog.get_logger


def configure(node: str, level: str = "info") -> None:
    """Send events of `level` and above to stderr, each with the node's name.

    Raises: ValueError if there is no such level.
    """
    threshold = logging.getLevelNamesMapping().get(level.upper())
    if threshold is None:
        raise ValueError(f"no log level {level!r}")
    structlog.configure(
        processors=[
            _add(node),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _renderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: Lines(sys.stderr),
        cache_logger_on_first_use=False,  # a level that changes must reach every logger
    )


class Lines:
    """A logger that writes lines to a stream, and drops those that it does not take."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        """Write one line."""
        with contextlib.suppress(OSError):
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = exception = msg


def _add(node: str) -> structlog.types.Processor:
    def processor(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["node"] = node
        return event

    return processor


def _renderer() -> Any:
    if sys.stderr.isatty():
        return structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "node", "event"]
        )
    return structlog.processors.JSONRenderer(sort_keys=True)
