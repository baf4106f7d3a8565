"""Groups of rollouts as samples of slime: what its rollout function returns.

    def generate_rollout(args, rollout_id, data_source, evaluation=False):
        made = slime.samples(next(batches).groups)  # batches = client.sample(...)
        return [[Sample.from_dict(each) for each in group] for group in made.groups]

The fields are those of `Sample` in slime/utils/types.py, and what `_convert_samples_to_train_data`
in slime/ray/rollout.py asserts of them, as of slime's commit 22cdc6e1 (July 2026): `tokens` is
prompt and response; `loss_mask` and `rollout_log_probs` have `response_length` items, with 0 and
0.0 for what a tool said; `rollout_id` is the same on all samples of one rollout ("so loss
aggregation averages within the rollout instead of over-counting it"). Older versions of slime keep
`rollout_id` as an attribute and read nothing from it.

Job: name, and keep groups whole.
Does not know: slime's package or torch; the caller makes the `Sample`.
Invariants: slime has no sample without a reward, and reshapes rewards by `n_samples_per_prompt`. So
a group is given whole, or left out whole and named.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..records import Outcome
from ..trajectories import Rollout
from .rows import Row, Segments, rows

STATUS: dict[Outcome, str] = {
    "completed": "completed",
    "truncated": "truncated",
    "agent_timeout": "truncated",
}
"""The `Sample.Status` of each outcome that can be trainable."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples by group, each a dict for `Sample.from_dict`, and the groups that were left out.

    left_out: the group ids of groups with a member that is missing or not trainable.
    """

    groups: list[list[dict[str, Any]]]
    left_out: tuple[str, ...]


def samples(
    groups: Iterable[Sequence[Rollout]],
    *,
    segments: Segments = "last",
    first_group: int = 0,
    first_sample: int = 0,
) -> Samples:
    """Return groups as samples.

    segments: `all` gives a rollout with several segments as many samples with one `rollout_id`;
        slime then normalizes rewards over the whole batch unless told how
        (`--custom-reward-post-process-path`).
    first_group, first_sample: where `group_index` and `index` go on from the batch before.

    Raises: ValueError as `rows`.
    """
    made: list[list[dict[str, Any]]] = []
    missing = []
    sample, execution = first_sample, first_sample
    for group in groups:
        found = [rows(each, segments) for each in group]
        if not all(found) or len(group) < group[0].group_size:
            missing.append(group[0].group_id)
            continue
        made.append([])
        for member in found:
            for row in member:
                place = {"group_index": first_group + len(made) - 1, "index": sample}
                made[-1].append(place | {"rollout_id": execution} | _sample(row))
                sample += 1
            execution += 1
    return Samples(made, tuple(missing))


def _sample(row: Row) -> dict[str, Any]:
    rollout = row.rollout
    return {
        "prompt": "",
        "response": "",
        "tokens": row.prompt_ids.tolist() + row.response_ids.tolist(),
        "response_length": len(row.response_ids),
        "reward": row.reward,
        "loss_mask": row.response_mask.tolist(),
        "rollout_log_probs": row.logprobs.tolist(),
        "weight_versions": [str(version) for version in row.versions],
        "remove_sample": False,
        "status": STATUS[rollout.outcome],
        "metadata": {
            "rollout_id": rollout.rollout_id,
            "group_id": rollout.group_id,
            "task_id": rollout.task_id,
            "outcome": rollout.outcome,
            "rewards": rollout.rewards,
        },
    }
