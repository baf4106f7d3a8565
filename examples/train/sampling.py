"""Rollouts for the trainer, through rollmq.

Job: batches of informative groups while the trainer works on the one before; the rewards of a fixed
set of problems.
Does not know: models, or what is learned.
Invariants: no wait without a deadline and a name. A group is given out once, whole; one whose
rewards are all the same is counted and dropped. What the infrastructure failed is counted, and has
no reward.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from engine import Client, Rollout, Task

from . import sums
from .batches import is_informative, usable

BATCH_S = 600.0  # for a batch, from when it is asked for
EVALUATION_SEED = 10_007  # problems that training does not draw
Watch = Callable[[], None]


@dataclass(slots=True, eq=False)
class Sampled:
    """What one batch was made of.

    groups: to learn from. rewards: of every rollout that ended for it, also in dropped groups.
    seen: groups that ended. failed: rollouts without a reward. seconds: that the trainer waited.
    """

    groups: list[list[Rollout]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    seen: int = 0
    failed: int = 0
    seconds: float = 0.0

    def add(self, group: list[Rollout]) -> None:
        """Take a group that ended."""
        self.seen += 1
        members = usable(group)
        self.failed += len(group) - len(members)
        self.rewards += [rollout.reward for rollout in members if rollout.reward is not None]
        if is_informative(group):
            self.groups.append(group)


class Deadline:
    """A named wait that ends."""

    def __init__(self, what: str, watch: Watch) -> None:
        self._what = what
        self._watch = watch
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._give_up_at = time.monotonic() + BATCH_S

    def check(self) -> None:
        """Look after the nodes. Raises: TimeoutError past the deadline."""
        self._watch()
        if time.monotonic() > self._give_up_at:
            raise TimeoutError(f"waited {BATCH_S:g} s for {self._what}")


def batches(
    client: Client, tasks: Iterator[Task], groups: int, group_size: int, ahead: int, watch: Watch
) -> Iterator[Sampled]:
    """Yield batches of informative groups without an end.

    ahead: batches under way beyond the one that is asked for: they go on while the trainer works,
    and what it then gets is older by as many versions, about.

    Raises: TimeoutError; what `Client.run` raises.
    """
    deadline = Deadline(f"a batch of {groups} groups", watch)
    in_flight = (1 + ahead) * groups * group_size
    unfinished: dict[str, list[Rollout]] = {}
    sampled, asked_at = Sampled(), time.monotonic()
    for rollout in client.run(tasks, group_size, in_flight=in_flight, idle=deadline.check):
        members = unfinished.setdefault(rollout.group_id, [])
        members.append(rollout)
        if len(members) < rollout.group_size:
            continue
        sampled.add(unfinished.pop(rollout.group_id))
        deadline.check()
        if len(sampled.groups) == groups:
            sampled.seconds = time.monotonic() - asked_at
            yield sampled
            sampled, asked_at = Sampled(), time.monotonic()
            deadline.start()


def evaluate(topology: Path, name: str, count: int, watch: Watch) -> list[Rollout]:
    """Return a rollout of each of `count` problems, which are always the same, in their order.

    Raises: TimeoutError; what `Client.run` raises.
    """
    deadline = Deadline(f"the evaluation {name}", watch)
    tasks = islice(sums.tasks(name, EVALUATION_SEED), count)
    with Client(topology, name, connect_s=60) as client:
        found = list(client.run(tasks, idle=deadline.check))
    return sorted(found, key=lambda rollout: int(rollout.task_id.rpartition("-")[2]))


def mean_reward(rollouts: list[Rollout]) -> float:
    """Return the mean reward of those that have one.

    Raises: ValueError if none has.
    """
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    if not rewards:
        raise ValueError("no rollout has a reward")
    return sum(rewards) / len(rewards)


def discard(client: Client) -> None:
    """Cancel and take what this client has under way, now or from a run that was killed."""
    client.cancel(everything=True)
    for _ in client.rollouts():
        pass
