import importlib
import os
import subprocess
import sys

import pytest

import engine
from engine.process import PARENT

PUBLIC = """
AccessRefused AsyncClient BackendState Batch BoundaryError BrokerUnreachable Client ClientError
Failure FilterError Full JournalError KeysError LedgerError LocalProtocolError NodeFailed
NodeRefused ProtocolError Published Receipt Refused RemoteProtocolError Replaced RollmqError
Rollout SourceFailed StageTiming StateLost Task Topology TopologyError Trajectory Usage load
"""


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(engine.__all__) == sorted(PUBLIC.split())


def test_every_public_name_is_there_and_documented() -> None:
    for name in engine.__all__:
        assert getattr(engine, name).__doc__, name


def test_every_error_that_can_be_raised_to_a_user_is_public() -> None:
    errors = importlib.import_module("engine.errors")
    tree = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.RollmqError)
    }
    assert tree - set(engine.__all__) == {"DiskFull"}, "told to trainers as a refused submit"


def loaded_by(code: str, **environment: str) -> set[str]:
    """Return the modules that a process has loaded when it has run some code."""
    command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
    before = {name: value for name, value in os.environ.items() if name != PARENT}
    said = subprocess.check_output(command, env=before | environment, text=True)
    return set(said.split())


@pytest.mark.parametrize(
    "node", ["nodes.broker.__main__", "nodes.stage.__main__", "nodes.sandboxes.__main__"]
)
def test_a_node_that_looks_at_no_array_starts_without_numpy_client_and_rich(node: str) -> None:
    loaded = loaded_by(f"import {node}", **{PARENT: "1"})
    assert not {"numpy", "rich", "engine.client"} & loaded


def test_a_handler_may_import_rich() -> None:
    assert "rich.console" in loaded_by("import engine.logs, rich.console", **{PARENT: "1"})


def test_a_trainers_structlog_has_rich() -> None:
    assert "rich" in loaded_by("import engine, structlog")
