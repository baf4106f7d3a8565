"""What the client is made of besides its core: sequences, groups and requests."""

from pathlib import Path

import pytest

from engine.client.front import Front
from engine.client.groups import Groups
from engine.client.requests import cancel_message, status_message, submit_message
from engine.client.sequence import Sequence
from engine.errors import TopologyError
from engine.records import Task
from engine.trajectories import Rollout

TASK = Task("t", "kind", {"question": "?"})


def test_a_sequence_remembers_what_is_beyond_a_gap() -> None:
    sequence = Sequence()
    for seq in (1, 3, 4):
        sequence.add(seq)
    assert [seq in sequence for seq in range(6)] == [True, True, False, True, True, False]
    assert (len(sequence), sequence.last) == (3, 4)
    sequence.add(2)
    sequence.add(2)
    assert (len(sequence), sequence.last, 5 in sequence) == (4, 4, False)


def test_a_sequence_skips_to_a_mark_and_never_back() -> None:
    sequence = Sequence()
    sequence.add(9)
    sequence.skip_to(8)
    assert (len(sequence), sequence.last) == (9, 9)
    sequence.add(10)
    sequence.skip_to(3)
    assert (len(sequence), 8 in sequence, sequence.last) == (10, True, 10)


def rollout(name: str, group_id: str) -> Rollout:
    return Rollout(
        rollout_id=name,
        group_id=group_id,
        group_size=2,
        task_id="t",
        seq=1,
        outcome="completed",
        reward=None,
        rewards={},
        trainable=False,
        trajectory=None,
        data={},
        arrays={},
        failures=(),
        timings=(),
        receipt=None,
        total_s=0.0,
    )


def test_groups_come_whole() -> None:
    groups = Groups()
    assert groups.add(rollout("a-0", "a")) is None
    assert groups.add(rollout("b-0", "b")) is None
    whole = groups.add(rollout("a-1", "a"))
    assert whole is not None
    assert [member.rollout_id for member in whole] == ["a-0", "a-1"]
    assert [[member.rollout_id for member in group] for group in groups.rest()] == [["b-0"]]
    assert groups.rest() == []


def test_a_submit_names_its_rollouts_after_its_group() -> None:
    message, body = submit_message(TASK, 2, "g", None, 3)
    assert message.rollout_ids == ("g-0", "g-1")
    assert (message.group_size, message.priority, body) == (2, 3, (b'{"question":"?"}',))
    assert submit_message(TASK, 2, None, None, 0)[0].group_id.startswith("t-")
    part, _ = submit_message(TASK, 4, "g", ["x"], 0)
    assert (part.rollout_ids, part.group_size) == (("x",), 4)


def test_a_submit_or_cancel_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        submit_message(TASK, 0, None, None, 0)
    with pytest.raises(ValueError, match="2 rollout_ids for a group of 1"):
        submit_message(TASK, 1, None, ["a", "b"], 0)
    with pytest.raises(ValueError, match="everything=True"):
        cancel_message((), (), everything=False)


def test_requests_have_ids_of_their_own() -> None:
    ids = {submit_message(TASK, 1, "g", None, 0)[0].submit_id for _ in range(2)}
    ids |= {status_message().request_id for _ in range(2)}
    ids |= {cancel_message(("r",), (), everything=False).cancel_id for _ in range(2)}
    assert len(ids) == 6


def test_an_address_is_an_endpoint_or_a_topology_file(tmp_path: Path) -> None:
    assert Front("ipc:///x/front", None).endpoint == "ipc:///x/front"
    file = tmp_path / "t.yaml"
    file.write_text("version: 1\nrun_dir: /r\nstages: [{name: run}]\nlimits: {queue_messages: 7}")
    front = Front(file, None)
    assert (front.endpoint, front.bounds.queue_messages) == ("ipc:///r/s/front", 7)
    with pytest.raises(TopologyError):
        Front(tmp_path / "none.yaml", None)
