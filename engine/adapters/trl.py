"""TRL's rollout function: GRPOTrainer asks, rollmq rolls out, TRL learns.

    asked = trl.Asked(client, tasks.__getitem__)            # a prompt of the dataset is a task's id
    trainer = GRPOTrainer(
        model=model, args=config, processing_class=tokenizer, train_dataset=dataset,
        reward_funcs=trl.reward,                            # what rollmq's evaluation said
        rollout_func=trl.rollout_func(asked, trl.Weights(client, "/checkpoints")),
    )

The contract is that of TRL 1.16, `GRPOTrainer._generate` in trl/trainer/grpo_trainer.py: called
with the prompts of this process, each as often as it has generations, and with the trainer; returns
`prompt_ids`, `completion_ids` and `logprobs`, a list for each prompt. `env_mask` ("marks model
tokens (1) vs external tokens (0)") multiplies the loss mask. All else goes to the reward functions,
and a reward of None is left out of its group's mean and given no advantage.

Job: prompts into tasks, groups into TRL's columns, trainer's weights into backends.
Does not know: torch, transformers or TRL; it uses what the trainer brings.
Invariants: one row for each prompt, in the prompts' order. A rollout that is not trainable is a row
of one masked token without a reward, after it was tried again.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from ..client import Client
from ..errors import ClientError
from ..records import Task
from ..trajectories import Rollout
from .rows import Row, nothing_trainable, rows

Columns = dict[str, list[Any]]
Source = Callable[[Sequence[Any]], list[Rollout]]
"""Prompts into as many rollouts, those of one group one after the other."""


class HasGroups(Protocol):
    """A batch of `client.sample`."""

    @property
    def groups(self) -> list[list[Rollout]]:
        """The groups of the batch."""
        ...


def rollout_func(
    source: Source, publish: Callable[[Any], None] | None = None
) -> Callable[[Sequence[Any], Any], Columns]:
    """Return a function for `GRPOTrainer(rollout_func=...)`.

    source: where rollouts come from: `Asked` or `Sampled`.
    publish: called with the trainer before each sampling, to bring the backends to its weights;
        `Weights`, or a function for weights that cannot be saved in one piece.
    """

    def roll_out(prompts: Sequence[Any], trainer: Any) -> Columns:
        if publish is not None:
            publish(trainer)
        return columns(source(prompts))

    return roll_out


def reward(*, rollmq_reward: list[float | None], **others: Any) -> list[float | None]:
    """Return the rewards that came with the rollouts: a reward function for GRPOTrainer.

    Logs the share of rollouts without one as `rollmq/untrainable`.
    """
    if (log := others.get("log_metric")) is not None:
        log("rollmq/untrainable", rollmq_reward.count(None) / len(rollmq_reward))
    return rollmq_reward


class Asked:
    """Rolls out the prompts that TRL asks for, and what failed once more.

    task: a prompt of the dataset into its task; different tasks have different ids.
    retries: how often rollouts that are not trainable are replaced by new ones of their task.
    In a run of several processes each has a client of its own, with a `client_id` of its own.
    """

    def __init__(self, client: Client, task: Callable[[Any], Task], *, retries: int = 1) -> None:
        self._client = client
        self._task = task
        self._retries = retries
        self.replaced = 0

    def __call__(self, prompts: Sequence[Any]) -> list[Rollout]:
        """Return a rollout for each prompt, in their order.

        Raises: what `client.run` raises; what `task` raises.
        """
        tasks = [self._task(prompt) for prompt in prompts]
        found = _roll_out(self._client, _neighbours(tasks))
        for _ in range(self._retries):
            failed = [at for at, each in enumerate(found) if not rows(each)]
            if not failed:
                break
            self.replaced += len(failed)
            again = _roll_out(self._client, [(tasks[at], 1) for at in failed])
            for at, rollout in zip(failed, again, strict=True):
                found[at] = rollout
        return found


class Sampled:
    """Takes whole batches of `client.sample`, with its filters and staleness, as TRL asks.

    TRL's prompts then only say how many rollouts it wants, which must be what a batch has:
    `groups` times `group_size`, with `group_size` TRL's `num_generations`.
    """

    def __init__(self, batches: Iterator[HasGroups]) -> None:
        self._batches = batches

    def __call__(self, prompts: Sequence[Any]) -> list[Rollout]:
        """Return the rollouts of the next batch.

        Raises: ClientError if there is none, or it is of another size.
        """
        batch = next(self._batches, None)
        if batch is None:
            raise ClientError(
                f"there are no more batches, and TRL asks for {len(prompts)} rollouts"
            )
        found = list(itertools.chain.from_iterable(batch.groups))
        if len(found) != len(prompts):
            raise ClientError(f"the batch has {len(found)} rollouts, TRL asks for {len(prompts)}")
        return found


class Weights:
    """Saves the trainer's weights and publishes them, whenever they have changed.

    directory: where; every backend must be able to read it. The last two steps are kept.
    Version n + 1 are the weights after n optimizer steps; 0 is what the backends began with.
    For weights in one piece (one process, DDP); sharded ones need a function of the trainer's own.
    """

    def __init__(self, client: Client, directory: str | Path, *, timeout_s: float = 300.0) -> None:
        self._client = client
        self._directory = Path(directory).resolve()
        self._timeout_s = timeout_s
        self._saved: list[Path] = []
        self._version = 0

    def __call__(self, trainer: Any) -> None:
        """Bring every backend to the trainer's weights.

        Raises: as `client.publish`.
        """
        version = int(trainer.state.global_step) + 1
        if version == self._version:
            return
        if trainer.accelerator.is_main_process:
            place = self._directory / f"version-{version}"
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(place)
            self._client.publish(version, str(place), timeout_s=self._timeout_s)
            self._saved.append(place)
            while len(self._saved) > 2:
                shutil.rmtree(self._saved.pop(0))
        trainer.accelerator.wait_for_everyone()
        self._version = version


def columns(rollouts: Sequence[Rollout]) -> Columns:
    """Return rollouts as TRL's columns, an item for each rollout.

    prompt_ids, completion_ids: lists of int. logprobs: lists of float, env_mask: lists of 0 and 1,
    both as long as the completion. rollmq_reward: float or None. rollmq_rollout, rollmq_outcome:
    str. rollmq_version: the first policy version that sampled it, or None.

    Raises: ClientError if nothing is trainable; ValueError as `rows`.
    """
    found = [next(iter(rows(each)), None) for each in rollouts]
    filler = next((row for row in found if row is not None), None)
    if filler is None:
        raise nothing_trainable(rollouts)
    filled = [_row(row) if row is not None else _masked(filler) for row in found]
    made = {name: [each[name] for each in filled] for name in filled[0]}
    return made | {
        "rollmq_rollout": [each.rollout_id for each in rollouts],
        "rollmq_outcome": [each.outcome for each in rollouts],
    }


def _row(row: Row) -> Mapping[str, Any]:
    return {
        "prompt_ids": row.prompt_ids.tolist(),
        "completion_ids": row.response_ids.tolist(),
        "logprobs": row.logprobs.tolist(),
        "env_mask": row.response_mask.tolist(),
        "rollmq_reward": row.reward,
        "rollmq_version": row.versions[0] if row.versions else None,
    }


def _masked(row: Row) -> Mapping[str, Any]:
    return {
        "prompt_ids": row.prompt_ids[:1].tolist(),
        "completion_ids": row.response_ids[:1].tolist(),
        "logprobs": [0.0],
        "env_mask": [0],
        "rollmq_reward": None,
        "rollmq_version": None,
    }


def _neighbours(tasks: Sequence[Task]) -> list[tuple[Task, int]]:
    """Return each stretch of the same task as the task and how often it comes."""
    stretches = (list(same) for _, same in itertools.groupby(tasks, key=lambda each: each.task_id))
    return [(same[0], len(same)) for same in stretches]


def _roll_out(client: Client, wanted: Sequence[tuple[Task, int]]) -> list[Rollout]:
    """Roll out groups of these sizes; return their members in this order, within a group by id."""
    names = [f"{task.task_id}-{uuid4().hex[:12]}" for task, _ in wanted]
    found: dict[str, list[Rollout]] = {name: [] for name in names}
    numbered = zip(names, wanted, strict=True)
    for size, alike in itertools.groupby(numbered, key=lambda each: each[1][1]):
        _run(client, {name: task for name, (task, _) in alike}, size, found)
    members = (sorted(found[name], key=lambda each: each.rollout_id) for name in names)
    return list(itertools.chain.from_iterable(members))


def _run(
    client: Client, tasks: Mapping[str, Task], size: int, found: dict[str, list[Rollout]]
) -> None:
    names = iter(tasks)
    for rollout in client.run(tasks.values(), size, group_id=lambda _: next(names)):
        if rollout.group_id in found:  # not one that an earlier process of this client left
            found[rollout.group_id].append(rollout)
