import importlib

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
