"""A directory for a run, with a name short enough for its sockets."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_path() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="rq", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
