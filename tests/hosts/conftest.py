from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from .cluster import Cluster, cluster
from .net import missing

Start = Callable[..., Cluster]


@pytest.fixture(scope="session")
def _network() -> None:
    if why := missing():
        pytest.skip(why)


@pytest.fixture
def start(_network: None) -> Iterator[Start]:
    """Start topologies on three hosts."""
    with ExitStack() as stack:

        def started(**topology: Any) -> Cluster:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="hosts-")))
            return stack.enter_context(cluster(directory, **topology))

        yield started
