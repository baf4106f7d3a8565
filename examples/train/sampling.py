"""Rollouts for the trainer, through rollmq.

Job: batches of informative groups, sampled while the trainer works on the one before; rollouts of a
fixed set of problems.
Does not know: models, or what is learned.
Invariants: no wait without a deadline. What the infrastructure failed has no reward.
"""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from uuid import uuid4

from engine import Batch, Client, Rollout, Task

from . import sums

AHEAD = 1  # batches that fill while the trainer works on one: they are a version older
PROMPTS = 40  # for each group of a batch; a policy that is always right has no more to learn
EVALUATION_SEED = 10_007  # not the one that training draws with
EVALUATION_S = 600.0


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """A batch, and how long the trainer waited for it."""

    batch: Batch
    waited_s: float


class Prompts:
    """Tasks, of which each batch may take so many; then they end, and sampling with them."""

    def __init__(self, tasks: Iterator[Task], most: int) -> None:
        self._tasks = tasks
        self._most = most
        self.renew()

    def renew(self) -> None:
        """Let the next batch begin to count."""
        self._left = self._most

    def __iter__(self) -> Iterator[Task]:
        """Return itself."""
        return self

    def __next__(self) -> Task:
        """Return the next task. Raises: StopIteration."""
        if self._left == 0:
            raise StopIteration
        self._left -= 1
        return next(self._tasks)


def batches(
    client: Client, tasks: Iterator[Task], groups: int, group_size: int
) -> Generator[Sampled]:
    """Yield batches of so many informative groups, until too few are informative.

    Raises: what `Client.sample` raises.
    """
    prompts = Prompts(tasks, PROMPTS * groups)
    asked_at = time.monotonic()
    for batch in client.sample(
        prompts,
        groups,
        group_size,
        keep="dapo",
        over="carry",
        ahead=AHEAD,
        staleness="pace",
        staleness_bound=AHEAD,
        sampling_id=f"train-{uuid4().hex[:8]}",  # a name: one that is killed can be closed
    ):
        if batch.reason != "complete":
            return
        prompts.renew()
        yield Sampled(batch, time.monotonic() - asked_at)
        asked_at = time.monotonic()


def discard(client: Client) -> None:
    """Cancel and take what this client has under way, now or from a run that was killed."""
    for sampling in client.status()["samplings"]:
        if sampling["client_id"] == client.client_id:
            client.close_sampling(sampling["sampling_id"])
    client.cancel(everything=True)
    for _ in client.rollouts():
        pass


def evaluate(topology: Path, name: str, count: int) -> list[Rollout]:
    """Return a rollout of each of `count` problems, which are always the same, in their order.

    Raises: TimeoutError if that takes longer than EVALUATION_S; what `Client.run` raises.
    """
    give_up_at = time.monotonic() + EVALUATION_S

    def check() -> None:
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"the evaluation {name} took longer than {EVALUATION_S:g} s")

    tasks = islice(sums.tasks(name, EVALUATION_SEED), count)
    with Client(topology, name) as client:
        found = list(client.run(tasks, idle=check))
    return sorted(found, key=lambda rollout: int(rollout.task_id.rpartition("-")[2]))


def mean_reward(rollouts: list[Rollout]) -> float:
    """Return the mean reward of those that have one.

    Raises: ValueError if none has.
    """
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    if not rewards:
        raise ValueError("no rollout has a reward")
    return sum(rewards) / len(rewards)
