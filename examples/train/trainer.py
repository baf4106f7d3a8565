"""The training loop: check what was delivered, learn from it, publish, again.

Job: one step after the other until the last; evaluate the same problems before and after.
Does not know: how the topology was started.
Invariants: a batch whose log-probabilities are not the trainer's own, within BOUND and MEAN_BOUND,
ends the run: nothing is learned from it. Each step ends with the next version published, while
rollouts under way go on.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import numpy as np
import torch

from engine import Client, NodeFailed

from .batches import Row, collate, exact, rows
from .policy import Policy, Ratios
from .report import Step
from .sampling import Sampled

BOUND, MEAN_BOUND = 1e-3, 1e-5  # float32, two implementations of one model
UPDATES = 2  # steps of the optimizer for each batch
ROWS = 32  # rows that are recomputed at once
PUBLISH_S = 120.0


class TokensChanged(Exception):  # noqa: N818 - says what happened
    """Delivered log-probabilities are not those of the weights that are said to have sampled."""


@dataclass(frozen=True, slots=True)
class Differences:
    """Of the log-probabilities of `tokens` tokens."""

    mean: float
    most: float
    tokens: int


class Trainer:
    """A policy, and the client through which it is sampled."""

    def __init__(self, client: Client, policy: Policy, weights: Path, seed: int) -> None:
        self._client = client
        self._policy = policy
        self._weights = weights
        self._chance = np.random.default_rng(seed)
        self.version = max((each.policy_version for each in client.backends()), default=0)

    def publish(self) -> None:
        """Bring the weights as they are to every backend, as the next version.

        The newest two stay on disk: a server that starts again loads the last one.

        Raises: NodeFailed if one could not load them; what `Client.publish` raises.
        """
        self.version += 1
        directory = self._weights / str(self.version)
        self._policy.save(directory)
        self._policy.remember(self.version)
        told = self._client.publish(self.version, str(directory.resolve()), timeout_s=PUBLISH_S)
        if told.failed:
            raise NodeFailed(f"version {self.version} was not loaded: {told.failed}")
        for old in self._weights.iterdir():
            if old.name not in {str(self.version), str(self.version - 1)}:
                rmtree(old)

    def step(self, number: int, sampled: Sampled) -> Step:
        """Check a batch, learn from it, and publish what was learned.

        Raises: TokensChanged; as `publish`.
        """
        times = [time.monotonic()]
        report = sampled.batch.report
        batch = rows(sampled.batch.groups)
        differences = self.check(batch)
        times.append(time.monotonic())
        lag = float(np.mean([self.version - row.version for row in batch]))
        ratios = self._learn(batch)
        times.append(time.monotonic())
        self.publish()
        times.append(time.monotonic())
        checking_s, training_s, publishing_s = np.diff(times).tolist()
        return Step(
            number=number,
            reward=report.mean_reward or 0.0,
            informative=report.informative_share,
            failed=report.failed.rollouts,
            rollouts=report.kept.rollouts + report.dropped.rollouts + report.failed.rollouts,
            tokens=sum(int(row.sampled.sum()) for row in batch),
            lag=lag,
            ratio_mean=float(np.mean([each.mean for each in ratios])),
            ratio_max=max(each.most for each in ratios),
            clipped=float(np.mean([each.clipped for each in ratios])),
            diff_mean=differences.mean,
            diff_max=differences.most,
            checked=differences.tokens,
            sampling_s=sampled.waited_s,
            checking_s=checking_s,
            training_s=training_s,
            publishing_s=publishing_s,
        )

    def check(self, batch: Sequence[Row]) -> Differences:
        """Compare delivered log-probabilities with those of the weights that sampled.

        Only what a rollout's first version sampled alone is compared: a rollout that spans versions
        goes on with keys and values that older weights have left, which nobody has any more.

        Raises: TokensChanged if they differ by more than the bounds, or nothing could be compared.
        """
        found = [
            self._policy.differences(version, collate(some)) for version, some in self._parts(batch)
        ]
        if not found:
            raise TokensChanged("no row of this batch comes from weights that are still here")
        all_ = torch.cat(found)
        differences = Differences(float(all_.mean()), float(all_.max()), len(all_))
        if not (differences.most <= BOUND and differences.mean <= MEAN_BOUND):
            raise TokensChanged(
                f"log-probabilities of {len(all_)} tokens differ from the trainer's by "
                f"{differences.mean:.1e} in the mean (bound {MEAN_BOUND:g}) "
                f"and {differences.most:.1e} at most (bound {BOUND:g})"
            )
        return differences

    def _parts(self, batch: Sequence[Row]) -> Iterator[tuple[int, list[Row]]]:
        """Yield (version, rows to compare), rows of about one length together."""
        for version in sorted({row.version for row in batch if self._policy.knows(row.version)}):
            mine = [exact(row) for row in batch if row.version == version]
            mine.sort(key=lambda row: len(row.token_ids))
            for start in range(0, len(mine), ROWS):
                yield version, mine[start : start + ROWS]

    def _learn(self, batch: Sequence[Row]) -> list[Ratios]:
        shuffled = self._chance.permutation(len(batch)).tolist()
        parts = [shuffled[first::UPDATES] for first in range(UPDATES)]
        return [self._policy.learn(collate([batch[n] for n in part])) for part in parts if part]
