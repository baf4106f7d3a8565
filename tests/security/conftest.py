"""One topology with keys for the tests of a file, and the check that it goes on after each."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .kit import Keyed, keyed


@pytest.fixture(scope="module")
def shared() -> Iterator[Keyed]:
    directory = Path(tempfile.mkdtemp(prefix="rq", dir="/tmp"))
    try:
        with keyed(directory) as site:
            yield site
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def site(shared: Keyed) -> Iterator[Keyed]:
    """A running topology; after the test it still does its work."""
    yield shared
    shared.works(2)
