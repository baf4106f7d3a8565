"""Find the function that serves a stage of a task kind.

A kind is an entry point of the group `rollmq.tasks`, or a dotted module name; its function has the
stage's name. A stage of the topology may name a `package.module:function` of its own instead.
"""

import importlib
import inspect
from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from engine.errors import BoundaryError

from ..tasks import Context, Output

AsyncHandler = Callable[[Context], Awaitable[Output]]
PlainHandler = Callable[[Context], Output]
Handler = AsyncHandler | PlainHandler
GROUP = "rollmq.tasks"


class Handlers:
    """Handlers of one stage, found once for each task kind."""

    def __init__(self, stage: str, override: str | None = None) -> None:
        self._stage = stage
        self._override = override
        self._found: dict[str, Handler] = {}

    def find(self, kind: str) -> Handler:
        """Return the handler of a task kind.

        Raises: BoundaryError("handler"), without retry, if there is none.
        """
        handler = self._found.get(kind)
        if handler is None:
            handler = self._found[kind] = self._load(kind)
        return handler

    def _load(self, kind: str) -> Handler:
        if self._override is not None:
            module_name, _, function = self._override.partition(":")
            return _function(_module(module_name, self._override), function, self._override)
        return _function(_kind_module(kind), self._stage, kind)


def is_async(handler: Handler) -> bool:
    """Whether the handler is a coroutine function; plain functions run in a thread."""
    return inspect.iscoroutinefunction(handler)


def _kind_module(kind: str) -> ModuleType:
    known = {point.name: point for point in entry_points(group=GROUP)}
    if kind in known:
        return _module(known[kind].value, kind)
    if "." in kind:
        return _module(kind, kind)
    names = ", ".join(sorted(known))
    raise BoundaryError("handler", f"no task kind {kind!r}; known are {names}", retry=False)


def _module(name: str, kind: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as wrong:
        why = f"task kind {kind!r}: importing {name} raised {type(wrong).__name__}: {wrong}"
        raise BoundaryError("handler", why, retry=False) from wrong


def _function(module: ModuleType, name: str, kind: str) -> Handler:
    found: Any = getattr(module, name, None)
    if not callable(found):
        why = f"task kind {kind!r}: {module.__name__} has no function {name!r}"
        raise BoundaryError("handler", why, retry=False)
    handler: Handler = found
    return handler
