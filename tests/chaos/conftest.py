from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from .scene import Scene, running

Start = Callable[..., Scene]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start topologies in directories with short names: IPC paths are limited to 107 bytes."""
    with ExitStack() as stack:

        def started(**topology: Any) -> Scene:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="chaos-")))
            return stack.enter_context(running(directory, **topology))

        yield started
