"""What a run amounts to: outcomes, rewards, and where the time went. Pure counting.

What only packages of task kinds know of is counted in sections, from entry points of the group
`rollmq.summaries`.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, Protocol

from .records import OUTCOMES
from .trajectories import Rollout


class Section(Protocol):
    """Counts something of each rollout that the engine does not know of."""

    def add(self, rollout: Rollout) -> None:
        """Count one rollout."""
        ...

    def report(self) -> Mapping[str, float]:
        """Return figures by name; empty if there was nothing to count."""
        ...


class Summary:
    """Adds up rollouts as they arrive; `sections` count what they know of, by name."""

    def __init__(self, sections: Mapping[str, Section] | None = None) -> None:
        self._sections = dict(sections or {})
        self.rollouts = 0
        self.tokens = 0
        self.outcomes: Counter[str] = Counter()
        self._rewards: list[float] = []
        self._work_s: defaultdict[str, list[float]] = defaultdict(list)
        self._queue_s: defaultdict[str, list[float]] = defaultdict(list)
        self._total_s: list[float] = []
        self._failures: Counter[str] = Counter()
        self._earlier = (0, 0)

    def begin(self) -> None:
        """Count what was added so far as an earlier run's: rates are of what comes from now on."""
        self._earlier = (self.rollouts, self.tokens)

    def add(self, rollout: Rollout) -> None:
        """Count one rollout."""
        self.rollouts += 1
        self.outcomes[rollout.outcome] += 1
        self._total_s.append(rollout.total_s)
        if rollout.reward is not None:
            self._rewards.append(rollout.reward)
        if rollout.trajectory is not None:
            self.tokens += int(rollout.trajectory.loss_mask.sum())
        for timing in rollout.timings:
            self._work_s[timing.stage].append(timing.work_s)
            self._queue_s[timing.stage].append(timing.queue_s)
        if rollout.outcome == "failed" and rollout.failures:
            last = rollout.failures[-1]
            self._failures[f"{last.stage}: {last.boundary}: {last.error}: {last.message}"] += 1
        for section in self._sections.values():
            section.add(rollout)

    @property
    def reward_mean(self) -> float | None:
        """The mean over rollouts that have a reward."""
        return sum(self._rewards) / len(self._rewards) if self._rewards else None

    @property
    def fresh(self) -> int:
        """The rollouts of this run, without an earlier one's."""
        return self.rollouts - self._earlier[0]

    def report(self, seconds: float, out: str) -> dict[str, Any]:
        """Return the summary as JSON; times in seconds, rates of this run alone."""
        fresh_tokens = self.tokens - self._earlier[1]
        return {
            "rollouts": self.rollouts,
            "outcomes": {name: self.outcomes[name] for name in OUTCOMES if self.outcomes[name]},
            "reward_mean": self.reward_mean,
            "rollouts_per_s": self.fresh / seconds if seconds > 0 else 0.0,
            "tokens_per_s": fresh_tokens / seconds if seconds > 0 else 0.0,
            "tokens": self.tokens,
            "seconds": seconds,
            "total_s": percentiles(self._total_s),
            "stages": {
                stage: {"work_s": percentiles(work), "queue_s": percentiles(self._queue_s[stage])}
                for stage, work in self._work_s.items()
            },
            "failures": dict(self._failures.most_common(10)),
            "sections": {name: dict(each.report()) for name, each in self._sections.items()},
            "out": out,
        }


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p90, p99 and max; nearest rank."""
    ordered = sorted(values)
    if not ordered:
        return {}
    last = len(ordered) - 1
    ranks = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[round(last * share)], 6) for name, share in ranks.items()}
