"""Files of a run: rollouts out and in again, task files in."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import RollmqError, TopologyError
from engine.output import RolloutFile, read_rollouts, read_tasks, write_rollout
from engine.records import Failure, Receipt, StageTiming, Task, Usage
from engine.trajectories import Rollout, Trajectory

FULL: dict[str, Any] = {
    "rollout_id": "r-1",
    "group_id": "g",
    "group_size": 2,
    "task_id": "t",
    "seq": 7,
    "outcome": "truncated",
    "reward": 0.5,
    "rewards": {"style": -1.0, "right": 1.0},
    "trainable": True,
    "trajectory": Trajectory(
        np.array([1, 2, 2**31 - 1], dtype=np.int32),
        np.array([0, 1, 1], dtype=np.uint8),
        np.array([0.0, -1.5, -1e-7], dtype=np.float32),
        np.array([[1, 3, 4]], dtype=np.int32),
    ),
    "data": {"init": {"words": ["ä", None, 1.5]}},
    "arrays": {
        "ids": np.array([[1], [2**40]], dtype=np.int64),
        "scores": np.array([np.nan, np.inf]),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "nothing": np.zeros((0, 4), dtype=np.uint8),
    },
    "failures": (Failure("run", 1, "backend", "Timeout", "no completion", "run-0"),),
    "timings": (StageTiming("init", 1, "init-0", 0.1, 0.2, 0.15),),
    "receipt": Receipt("r-1", "run", True, Usage(2, 64, 1.5)),
    "total_s": 2.5,
    "policy_version": 4,
    "sampling_id": "s-1",
    "prompt": 17,
}
ARRAYS = {"trajectory", "arrays"}
SPARSE = {
    **FULL,
    "rollout_id": "r-2",
    "outcome": "failed",
    "reward": None,
    "rewards": {},
    "trainable": False,
    "trajectory": None,
    "data": {},
    "arrays": {},
    "failures": (),
    "timings": (),
    "receipt": None,
    "policy_version": None,
}


def write(path: Path, *rollouts: Rollout) -> bytes:
    file = io.BytesIO()
    for rollout in rollouts:
        write_rollout(file, rollout)
    path.write_bytes(file.getvalue())
    return file.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.jsonl"


def test_every_field_of_a_rollout_comes_back(path: Path) -> None:
    assert set(FULL) == set(Rollout.__dataclass_fields__)
    write(path, Rollout(**FULL), Rollout(**SPARSE))
    full, sparse = read_rollouts(path)
    for name in set(FULL) - ARRAYS:
        assert getattr(full, name) == FULL[name]
    for name, value in SPARSE.items():
        assert getattr(sparse, name) == value


def test_every_array_comes_back_with_its_dtype_and_shape(path: Path) -> None:
    write(path, Rollout(**FULL))
    [found] = read_rollouts(path)
    assert found.trajectory is not None
    pairs = [(found.arrays[name], array) for name, array in FULL["arrays"].items()]
    pairs += [
        (getattr(found.trajectory, name), getattr(FULL["trajectory"], name))
        for name in Trajectory.__dataclass_fields__
    ]
    for array, written in pairs:
        assert (array.dtype, array.shape) == (written.dtype, written.shape)
        np.testing.assert_array_equal(array, written)
    assert set(found.arrays) == set(FULL["arrays"])


def test_a_last_line_that_was_cut_off_is_left_out(path: Path) -> None:
    text = write(path, Rollout(**FULL), Rollout(**SPARSE))
    path.write_bytes(text[:-1])
    assert [rollout.rollout_id for rollout in read_rollouts(path)] == ["r-1"]
    path.write_bytes(b"")
    assert list(read_rollouts(path)) == []


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'"seq":7', b'"seq":-7', "seq"),
        (b'"seq":7', b'"seq":7,"more":7', "more"),
        (b'"outcome":"truncated"', b'"outcome":"fine"', "outcome"),
        (b'"dtype":"int32"', b'"dtype":"int33"', "int33"),
        (b'"shape":[3]', b'"shape":[4]', "cannot reshape"),
        (b'"base64":"', b'"base64":"!', "Only base64 data"),
        (b'"dtype":"int32",', b"", "dtype"),
        (b'{"rollout_id"', b"rollout_id", "unexpected character"),
        (b'"arrays":{', b'"x":{', "arrays: expected an object"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(path: Path, old: bytes, new: bytes, why: str) -> None:
    text = write(path, Rollout(**SPARSE), Rollout(**FULL))
    assert old in text
    head, tail = text.split(b"\n", 1)
    path.write_bytes(head + b"\n" + tail.replace(old, new, 1))
    rollouts = read_rollouts(path)
    assert next(rollouts).rollout_id == "r-2"
    with pytest.raises(RollmqError, match=rf"file\.jsonl:2: .*{why}"):
        next(rollouts)


@pytest.mark.parametrize("line", ["[]", "1", "null", '"text"', "{}"])
def test_a_line_that_is_no_rollout_is_named(path: Path, line: str) -> None:
    path.write_text(line + "\n")
    with pytest.raises(RollmqError, match=r"file\.jsonl:1: "):
        list(read_rollouts(path))


def test_tasks_are_read_in_order_and_blank_lines_skipped(path: Path) -> None:
    path.write_text(
        '{"task_id": "a", "kind": "k", "payload": {"x": [1]}}\n\n'
        '{"kind": "k", "payload": {}, "task_id": "b"}'
    )
    assert read_tasks(path) == [Task("a", "k", {"x": [1]}), Task("b", "k", {})]


def test_every_bad_line_of_a_task_file_is_named_at_once(path: Path) -> None:
    lines = {
        1: '{"task_id": "a", "kind": "k", "payload": {}}',
        2: "{",
        3: '{"task_id": "b", "kind": "k"}',
        4: '{"task_id": "c", "kind": "k", "payload": []}',
        5: '{"task_id": "", "kind": "k", "payload": {}}',
        6: '{"task_id": "d", "kind": "k", "payload": {}, "seed": 1}',
        7: '{"task_id": "a", "kind": "k", "payload": {}}',
        8: "[]",
        9: '{"task_id": "%s", "kind": "k", "payload": {}}' % ("x" * 151),
        10: '{"task_id": "e", "kind": "k", "payload": {}}',
    }
    path.write_text("\n".join(lines.values()))
    with pytest.raises(TopologyError) as caught:
        read_tasks(path)
    problems = {problem.line: problem for problem in caught.value.problems}
    assert list(problems) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert problems[7].message == "'a' is on line 1 already"
    assert "payload" in str(problems[3])
    assert "seed" in str(problems[6])
    assert str(caught.value).count(f"{path}:") == 8


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_a_task_is_a_mistake(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(TopologyError, match="no task in this file"):
        read_tasks(path)


def test_a_task_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="cannot be read: Is a directory"):
        read_tasks(tmp_path)


def test_a_sync_comes_after_what_was_written_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sizes = tmp_path / "rollouts.jsonl", []
    monkeypatch.setattr(os, "fdatasync", lambda file: sizes.append(os.fstat(file).st_size))
    with RolloutFile(path) as file:
        file.sync()
        file.write(Rollout(**FULL))
        file.write(Rollout(**SPARSE))
        file.sync()
        file.sync()
    assert sizes == [0, path.stat().st_size]


def test_a_file_that_could_not_be_synced_never_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_file: int) -> None:
        raise OSError(errno.EIO, "broken")

    with RolloutFile(tmp_path / "rollouts.jsonl") as file:
        file.write(Rollout(**FULL))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", refuse)
            with pytest.raises(OSError, match="broken"):
                file.sync()
        with pytest.raises(OSError, match="broken"):
            file.sync()
