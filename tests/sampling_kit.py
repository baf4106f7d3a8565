"""A sampler that tests play with: what happens to it, and what it decided."""

from typing import Any

import orjson
from msgspec.structs import replace

from engine.sampling import (
    FILTERS,
    Complete,
    Filter,
    Judge,
    Member,
    Sampler,
    Sealed,
    Spec,
    Stop,
    StopStale,
    read_state,
)
from engine.wire import write_json


def member(name: str, reward: float | None = 1.0, **changes: Any) -> Member:
    outcome: Any = "failed" if reward is None else "completed"
    return replace(Member(name, outcome, reward, {}, 1, 10, 2.0, None), **changes)


class Play:
    """A sampler, and short ways to let things happen to it."""

    def __init__(self, groups: int = 2, size: int = 2, keep: str = "dapo", **spec: Any) -> None:
        self.spec = Spec(groups, size, keep, **spec)
        self.now = 100.0
        self.sampler = Sampler(self.spec, self.filter(), 0, self.now)
        self.size = size
        self.accepted: dict[int, int] = {}
        self.ended: dict[int, dict[str, Member]] = {}
        self.judged: dict[int, str] = {}
        self.sealed: list[tuple[Sealed, bool]] = []
        self.stops: list[int] = []
        self.stale: list[str] = []

    def filter(self) -> Filter:
        keep = FILTERS[self.spec.keep]
        return Filter(keep.name, keep.keeps, keep.may_keep, self.spec.keep_args)

    def begin(self, *prompts: int, rollouts: int | None = None) -> None:
        """Accept these prompts, whole or so many more rollouts of each."""
        for prompt in prompts:
            more = self.size if rollouts is None else rollouts
            self.accepted[prompt] = self.accepted.get(prompt, 0) + more
            self.sampler.accept(prompt, more, self.now)
        self.heed()

    def end(self, prompt: int, *rewards: float | None, **changes: Any) -> None:
        """End the next members of a prompt with these rewards."""
        ended = self.ended.setdefault(prompt, {})
        for reward in rewards:
            name = f"{prompt}-{len(ended)}"
            self.end_one(prompt, name, reward, **changes)

    def end_one(self, prompt: int, name: str, reward: float | None = 1.0, **changes: Any) -> None:
        self.ended.setdefault(prompt, {})[name] = member(name, reward, **changes)
        self.sampler.end(prompt, self.ended[prompt][name], self.now)
        self.heed()

    def group(self, prompt: int, *rewards: float | None, **changes: Any) -> None:
        """Begin a group and end all of it."""
        self.begin(prompt)
        self.end(prompt, *rewards, **changes)

    def age(self, version: int, *live: tuple[int, str, int]) -> None:
        self.sampler.age(version, live, self.now)
        self.heed()

    def heed(self) -> None:
        for decision in self.sampler.decisions:
            match decision:
                case Stop(prompt):
                    self.stops.append(prompt)
                case StopStale(names):
                    self.stale += names
                case Judge(prompt, verdict):
                    assert prompt not in self.judged
                    self.judged[prompt] = verdict
                case Complete(batch, final):
                    self.sealed.append((batch, final))
        self.sampler.decisions.clear()

    def want(self) -> int:
        """Take all the room there is; return how much that was."""
        before = self.sampler.wanted
        while self.sampler.room() and self.sampler.wanted < before + 1000:
            self.sampler.want()
        return self.sampler.wanted - before

    def batches(self) -> list[list[int]]:
        return [list(batch.prompts) for batch, _ in self.sealed]

    @property
    def last(self) -> Sealed:
        return self.sealed[-1][0]

    def restart(self, state: Any = None) -> "Play":
        """Return the same sampling after a restart, its state by way of JSON."""
        kept = orjson.loads(write_json(state or self.sampler.state(self.now)))
        again = Play(self.spec.groups, self.size)
        again.spec, again.now = self.spec, self.now + 1.0
        again.sampler = Sampler.restored(read_state(kept), self.filter(), 0, again.now)
        again.accepted, again.ended = dict(self.accepted), self.ended
        again.sampler.version = self.sampler.version
        for prompt, rollouts in self.accepted.items():
            ended = self.ended.get(prompt, {}).values()
            again.sampler.resume(prompt, rollouts, ended, again.now)
        again.sampler.settle(again.now)
        again.heed()
        return again


def spent(play: Play) -> int:
    """Count the rollouts of every report's verdicts, each batch's by what was told last."""
    reports = {batch.number: batch.report for batch, _ in play.sealed}.values()
    parts = [(r.kept, r.dropped, r.failed, r.stale, r.cancelled) for r in reports]
    return sum(part.rollouts for report in parts for part in report)
