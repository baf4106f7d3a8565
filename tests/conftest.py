"""A directory for a run, with a name short enough for its sockets, one vLLM server for all, and
figures that tests measure, shown at the end of the run."""

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from .vllm_kit import TINY, served

FIGURES = pytest.StashKey[list[str]]()


# Shells ignore SIGINT for what they run in the background, and every child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("patient", deadline=None)  # a busy machine's pause is no failure
settings.load_profile("patient")


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


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that takes a sentence with a figure."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in terminalreporter.config.stash.get(FIGURES, []):
        terminalreporter.write_line(f"measured: {line}")
