"""A directory for a run, with a name short enough for its sockets, and one vLLM server for all."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .vllm_kit import TINY, served


@pytest.fixture
def short_path() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="rq", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a server with the tiny model; who loads other weights puts these back."""
    with served(TINY, tmp_path_factory.mktemp("server")) as url:
        yield url
