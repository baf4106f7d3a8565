"""What a trainer asks, as messages: ids are made here when the trainer does not choose them."""

from collections.abc import Sequence
from uuid import uuid4

from ..messages import Cancel, StatusRequest, Submit
from ..records import Task
from ..wire import json_buffer


def submit_message(
    task: Task,
    group_size: int,
    group_id: str | None,
    rollout_ids: Sequence[str] | None,
    priority: int,
    sampling: tuple[str, int] = ("", 0),
) -> tuple[Submit, tuple[bytes, ...]]:
    """Return the submit of one group and its body; `sampling` is a sampling's id and a prompt.

    Raises: ValueError if there is no rollout in it, or ids and group_size differ.
    """
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    group = group_id or f"{task.task_id}-{uuid4().hex[:12]}"
    names = tuple(rollout_ids or (f"{group}-{number}" for number in range(group_size)))
    if len(names) > group_size:
        raise ValueError(f"{len(names)} rollout_ids for a group of {group_size}")
    buffer, text = json_buffer("task", task.payload)
    message = Submit(
        submit_id=uuid4().hex,
        group_id=group,
        task_id=task.task_id,
        task_kind=task.kind,
        rollout_ids=names,
        buffers=(buffer,),
        group_size=group_size,
        priority=priority,
        sampling_id=sampling[0],
        prompt=sampling[1],
    )
    return message, (text,)


def cancel_message(
    rollout_ids: Sequence[str], group_ids: Sequence[str], *, everything: bool, client_id: str = ""
) -> Cancel:
    """Return a cancel.

    Raises: ValueError if it names nothing.
    """
    if not (rollout_ids or group_ids or everything):
        raise ValueError("name rollouts or groups, or say everything=True")
    return Cancel(uuid4().hex, tuple(rollout_ids), tuple(group_ids), everything, client_id)


def status_message() -> StatusRequest:
    """Return a status request."""
    return StatusRequest(uuid4().hex)
