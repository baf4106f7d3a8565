"""Groups of rollouts as a batch of verl: what its agent loop gives to its trainer.

    batch = verl.batch(groups, prompt_length=2048, response_length=8192, pad_token_id=0)
    data = batch.data_proto()   # verl.DataProto, for advantages and update_actor

The names and the padding are those of verl 0.9.1, `AgentLoopWorker._postprocess` in
verl/experimental/agent_loop/agent_loop.py: "prompt_ids: left padded with zeros", "response_ids:
right padded with zeros", "response_mask: 1s for LLM generated tokens, 0 for tool response/padding
tokens". The trainer adds `token_level_scores` from `rm_scores` (`extract_reward` in
verl/trainer/ppo/reward.py), `old_log_probs` and `advantages` itself.

Job: pad, name, and leave out what is not trainable.
Does not know: torch, until a DataProto is asked for.
Invariants: a row's attention mask covers its tokens and nothing else; its score stands on its last
sampled token; rows of a group share a `uid`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..trajectories import Rollout
from .rows import Row, Segments, left_out, nothing_trainable, rows

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One batch; n rows, P and R the padded lengths of prompts and responses.

    tensors: prompts int64 [n, P], left-padded; responses int64 [n, R], right-padded; input_ids,
        attention_mask and position_ids int64 [n, P + R]; response_mask int64 [n, R];
        rollout_log_probs and rm_scores float32 [n, R].
    non_tensors: [n] each: uid (the group), rollout_id, task_id and outcome, str; `__num_turns__`
        int32; min_global_steps and max_global_steps, the policy versions, int or None; each part of
        the reward by its name, float64, NaN where a rollout has no such part.
    meta_info: `reward_extra_keys`: the names of those parts.
    left_out: ids of the rollouts that are not trainable; they have no row.
    """

    tensors: dict[str, Array]
    non_tensors: dict[str, Array]
    meta_info: dict[str, Any]
    left_out: tuple[str, ...]

    def data_proto(self) -> Any:
        """Return a `verl.DataProto`.

        Raises: ImportError without verl.
        """
        import torch  # noqa: PLC0415 - only who has verl has it
        from verl import DataProto  # noqa: PLC0415 - the same

        tensors = {name: torch.from_numpy(array) for name, array in self.tensors.items()}
        return DataProto.from_dict(tensors, dict(self.non_tensors), meta_info=dict(self.meta_info))


def batch(
    groups: Iterable[Sequence[Rollout]],
    *,
    prompt_length: int | None = None,
    response_length: int | None = None,
    pad_token_id: int = 0,
    cut: bool = False,
    segments: Segments = "last",
) -> Batch:
    """Return groups as one batch.

    prompt_length, response_length: to pad to, as verl's `rollout.prompt_length` and
        `rollout.response_length`; the longest there is, if None.
    cut: cut a response that is longer, as verl's agent loop does, instead of refusing it.
    segments: `all` gives a rollout with several segments as many rows, each with its reward; means
        over a `uid` then count it as often.

    Raises: ClientError if nothing is trainable; ValueError if a row is too long, or as `rows`.
    """
    members = [list(group) for group in groups]
    found = [row for group in members for each in group for row in rows(each, segments)]
    if not found:
        raise nothing_trainable(each for group in members for each in group)
    width = prompt_length or max(len(row.prompt_ids) for row in found)
    length = response_length or max(len(row.response_ids) for row in found)
    _refuse_longer(found, width, None if cut else length)
    parts = sorted({name for row in found for name in row.rollout.rewards})
    return Batch(
        tensors=_tensors(found, width, length, pad_token_id),
        non_tensors=_non_tensors(found) | _parts(found, parts),
        meta_info={"reward_extra_keys": parts},
        left_out=left_out(members),
    )


def _refuse_longer(found: list[Row], width: int, length: int | None) -> None:
    for row in found:
        name, asked, given = row.rollout.rollout_id, len(row.prompt_ids), len(row.response_ids)
        if asked > width:
            raise ValueError(f"rollout {name}: a prompt of {asked} tokens, prompt_length {width}")
        if length is not None and given > length:
            raise ValueError(
                f"rollout {name}: a response of {given} tokens, response_length {length}"
            )


def _tensors(found: list[Row], width: int, length: int, pad_token_id: int) -> dict[str, Array]:
    count = len(found)
    ids = np.full((count, width + length), pad_token_id, dtype=np.int64)
    attention = np.zeros((count, width + length), dtype=np.int64)
    mask = np.zeros((count, length), dtype=np.int64)
    logprobs, scores = np.zeros((2, count, length), dtype=np.float32)
    for at, row in enumerate(found):
        start, given = width - len(row.prompt_ids), min(len(row.response_ids), length)
        ids[at, start:width] = row.prompt_ids
        ids[at, width : width + given] = row.response_ids[:given]
        attention[at, start : width + given] = 1
        mask[at, :given] = row.response_mask[:given]
        logprobs[at, :given] = row.logprobs[:given]
        scores[at, np.flatnonzero(mask[at])[-1]] = row.reward
    return {
        "prompts": ids[:, :width].copy(),
        "responses": ids[:, width:].copy(),
        "response_mask": mask,
        "input_ids": ids,
        "attention_mask": attention,
        "position_ids": np.maximum(np.cumsum(attention, axis=1) - 1, 0),
        "rollout_log_probs": logprobs,
        "rm_scores": scores,
    }


def _non_tensors(found: list[Row]) -> dict[str, Array]:
    rollouts = [row.rollout for row in found]
    return {
        "uid": _objects([each.group_id for each in rollouts]),
        "rollout_id": _objects([each.rollout_id for each in rollouts]),
        "task_id": _objects([each.task_id for each in rollouts]),
        "outcome": _objects([each.outcome for each in rollouts]),
        "__num_turns__": np.array([_turns(row) for row in found], dtype=np.int32),
        "min_global_steps": _objects([min(row.versions, default=None) for row in found]),
        "max_global_steps": _objects([max(row.versions, default=None) for row in found]),
    }


def _parts(found: list[Row], names: list[str]) -> dict[str, Array]:
    return {
        name: np.array([row.rollout.rewards.get(name, np.nan) for row in found], dtype=np.float64)
        for name in names
    }


def _turns(row: Row) -> int:
    """Count the chat turns: the stretches of the response that are sampled or not, and the prompt.

    verl counts user, assistant and tool turns alike ("Number of chat turns, including user,
    assistant, tool").
    """
    return int(np.count_nonzero(np.diff(row.response_mask))) + 2


def _objects(values: Sequence[Any]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
