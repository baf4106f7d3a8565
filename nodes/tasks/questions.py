"""Tasks of kind `reasoning`, made from reasoning-gym's datasets.

Job: name questions so that eval finds them again: dataset, configuration, seed and index.
Does not know: how they are answered or scored.
Invariants: the same names, count and seed give the same tasks in the same order; a task_id says
which question it is.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from reasoning_gym import create_dataset
from reasoning_gym.factory import DATASETS

Line = dict[str, Any]


def reasoning_gym_tasks(
    names: Sequence[str], count: int, seed: int, limits: dict[str, int]
) -> Iterator[Line]:
    """Yield `count` tasks, taking the datasets in turn; `limits` go into each payload.

    Raises: ValueError if a dataset does not exist or there is none.
    """
    unknown = [name for name in names if name not in DATASETS]
    if unknown or not names:
        raise ValueError(f"no dataset {', '.join(unknown) or 'is named'}")
    size = max(1, -(-count // len(names)))
    datasets = [(name, create_dataset(name, seed=seed, size=size)) for name in names]
    for place in range(count):
        index, which = divmod(place, len(names))
        yield _task(*datasets[which], index, seed, size, limits)


def _task(
    name: str, dataset: Any, index: int, seed: int, size: int, limits: dict[str, int]
) -> Line:
    payload = {"dataset": name, "config": {}, "seed": seed, "size": size, "index": index}
    question = {"question": dataset[index]["question"]}
    return {
        "task_id": f"{name}-{seed}-{index}",
        "kind": "reasoning",
        "payload": {**payload, **question, **limits},
    }
