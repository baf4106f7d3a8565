"""What a run leaves on disk: trajectories as JSON lines, and task files that go in.

`trajectories.jsonl` has one JSON object a line, in order of arrival: the fields of `Rollout`, and
`arrays`, an object of every array by name: `{"dtype": "int32", "shape": [n], "base64": "..."}`,
raw little-endian bytes. The trajectory's arrays are among them (token_ids, loss_mask, logprobs,
policy_spans). A task file has `{"task_id": ..., "kind": ..., "payload": {...}}` a line.
This module knows no socket.
"""

import os
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import orjson

from .errors import Problem, RollmqError, TopologyError
from .files import sync_directory
from .records import Dtype, Failure, Outcome, Receipt, StageTiming, Task
from .trajectories import TRAJECTORY, Rollout, Trajectory
from .typed import Count, Id, Length, Mismatch, Seconds, Text, compile_decoder
from .wire import write_json

FILE_NAME = "trajectories.jsonl"


@dataclass(frozen=True, slots=True)
class _Row:
    rollout_id: Id
    group_id: Id
    group_size: Count
    task_id: Id
    seq: Count
    outcome: Outcome
    reward: float | None
    rewards: dict[str, float]
    trainable: bool
    failures: tuple[Failure, ...]
    timings: tuple[StageTiming, ...]
    receipt: Receipt | None
    total_s: Annotated[Seconds, "accepted until ended"]
    policy_version: int | None = None
    sampling_id: Text = ""
    prompt: Count = 0


@dataclass(frozen=True, slots=True)
class _TaskRow:
    task_id: Annotated[str, Length(1, 150)]  # the run's name and a number make it a rollout's Id
    kind: Id


@dataclass(frozen=True, slots=True)
class _Packed:
    dtype: Dtype
    shape: tuple[Count, ...]
    base64: str


_ROW = compile_decoder(_Row)
_PACKED = compile_decoder(_Packed)
_TASK = compile_decoder(_TaskRow)


def write_rollout(file: IO[bytes], rollout: Rollout) -> None:
    """Append one rollout as a line."""
    row: dict[str, Any] = {name: getattr(rollout, name) for name in _Row.__dataclass_fields__}
    arrays = dict(rollout.arrays)
    if rollout.trajectory is not None:
        arrays |= {name: getattr(rollout.trajectory, name) for name in TRAJECTORY}
    row["data"] = rollout.data
    row["arrays"] = {name: _pack(array) for name, array in arrays.items()}
    file.write(write_json(row) + b"\n")


class RolloutFile:
    """A file of rollouts, open at its end: write, then sync, then acknowledge.

    What was written is in the file for every reader; after `sync` a crash of the machine leaves it
    there, too. What an earlier process left unsynced is part of the first sync.

    Raises: OSError.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("ab")
        self._is_synced = False
        self._failure: OSError | None = None
        sync_directory(path.parent)

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; what was not synced may not survive the machine."""
        self._file.close()

    def write(self, rollout: Rollout) -> None:
        """Append one rollout. Raises: OSError."""
        self._is_synced = False
        write_rollout(self._file, rollout)
        self._file.flush()

    def sync(self) -> None:
        """Return once everything written is on disk; at once if it is.

        Raises: OSError; then at every later call, too: the kernel reports a lost page only once.
        """
        if self._failure is not None:
            raise self._failure
        if self._is_synced:
            return
        try:
            os.fdatasync(self._file.fileno())
        except OSError as wrong:
            self._failure = wrong
            raise
        self._is_synced = True


def read_rollouts(path: Path) -> Iterator[Rollout]:
    """Iterate the rollouts of a file; a last line that was cut off by a crash is left out.

    Raises: RollmqError naming file, line and field.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _rollout(orjson.loads(line))
            except (Mismatch, ValueError) as wrong:
                raise RollmqError(f"{path}:{number}: {wrong}") from wrong


def read_tasks(path: Path) -> list[Task]:
    """Read a task file.

    Raises: TopologyError naming every bad line of it at once.
    """
    tasks, problems = [], []
    seen: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            task = _task(orjson.loads(line))
        except (orjson.JSONDecodeError, Mismatch) as wrong:
            problems.append(Problem(str(path), number, "", str(wrong)))
            continue
        if task.task_id in seen:
            why = f"{task.task_id!r} is on line {seen[task.task_id]} already"
            problems.append(Problem(str(path), number, "task_id", why))
        seen[task.task_id] = number
        tasks.append(task)
    if not (tasks or problems):
        problems.append(Problem(str(path), 1, "", "no task in this file"))
    if problems:
        raise TopologyError(problems)
    return tasks


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as wrong:
        raise TopologyError(
            [Problem(str(path), 1, "", f"cannot be read: {wrong.strerror}")]
        ) from None


def _task(row: Any) -> Task:
    payload = _pop_object(row, "payload")
    named = _TASK(row)
    return Task(named.task_id, named.kind, payload)


def _pop_object(row: Any, name: str) -> dict[str, Any]:
    """Take out what the decoders of records do not know: an object of any shape."""
    found = row.pop(name, None) if isinstance(row, dict) else None
    if not isinstance(found, dict):
        raise Mismatch("expected an object", (name,))
    return found


def _rollout(row: Any) -> Rollout:
    data, packed = _pop_object(row, "data"), _pop_object(row, "arrays")
    arrays = {name: _unpack(_PACKED(array)) for name, array in packed.items()}
    parts = {name: arrays.pop(name) for name in TRAJECTORY if name in arrays}
    fields = _ROW(row)
    return Rollout(
        **{name: getattr(fields, name) for name in _Row.__dataclass_fields__},
        trajectory=Trajectory(**parts) if parts else None,
        data=data,
        arrays=arrays,
    )


def _pack(array: npt.NDArray[Any]) -> dict[str, Any]:
    text = b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": text}


def _unpack(packed: _Packed) -> npt.NDArray[Any]:
    dtype = np.dtype(packed.dtype).newbyteorder("<")
    return np.frombuffer(b64decode(packed.base64, validate=True), dtype).reshape(packed.shape)
