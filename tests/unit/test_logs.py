"""Logs of a process."""

import errno
import io
import json
from collections.abc import Iterator

import pytest
import structlog

from engine.logs import configure


@pytest.fixture(autouse=True)
def _structlog_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_events_are_json_lines_with_the_node_when_nobody_watches(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("run-0", "info")
    structlog.get_logger().info("ready", slots=4)
    structlog.get_logger().debug("too quiet")
    [line] = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "ready", "level": "info", "node": "run-0", "slots": 4}


def test_events_are_key_value_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    configure("run-0", "INFO")
    structlog.get_logger().info("node ready", slots=4)
    assert 'level=info node=run-0 event="node ready" slots=4' in capsys.readouterr().err


def test_a_log_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", FullDisk())
    configure("run-0", "info")
    structlog.get_logger().warning("no space")


class FullDisk(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(ValueError, match="no log level 'loud'"):
        configure("run-0", "loud")
