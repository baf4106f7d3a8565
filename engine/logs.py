"""Logs of one process: key=value on a terminal, one JSON object a line elsewhere.

Job: configure structlog once, at the start of a node's main; hand out loggers. Everybody else has
them from here: structlog imports rich for a renderer that no node uses, which is an eighth of the
time that a node takes to start. Other processes are their users', who may want it.
Does not know: what is logged.
Invariants: every event carries its node's name, a level and a UTC time; logs go to stderr, so that
standard output stays a program's answer. A log that cannot be written, on a full disk say, ends no
process.
"""

import contextlib
import logging
import os
import sys
from typing import Any, TextIO

_MODULES: dict[str, Any] = sys.modules
_IS_NODE = "ROLLMQ_PARENT" in os.environ  # `process.PARENT`
if _IS_NODE:
    _MODULES.setdefault("rich", None)
import structlog  # noqa: E402
from structlog.types import EventDict  # noqa: E402

if _IS_NODE and _MODULES["rich"] is None:
    del _MODULES["rich"]  # a handler that wants it imports it

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
