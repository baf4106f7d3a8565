import importlib
import subprocess
import sys

import pytest

import engine

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


@pytest.mark.parametrize(
    "node", ["nodes.broker.__main__", "nodes.stage.__main__", "nodes.sandboxes.__main__"]
)
def test_a_node_that_looks_at_no_array_starts_without_numpy_client_and_rich(node: str) -> None:
    code = f"import {node}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"numpy", "rich", "engine.client"} & set(done.stdout.split())


def test_rich_can_be_imported_behind_the_logs() -> None:
    code = "import engine.logs; from rich.console import Console; Console().print('here')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "here\n"
