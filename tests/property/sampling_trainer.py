"""A trainer with one sampling, by the client's own core and driver, over all of its lives."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from engine.client.core import Core
from engine.client.sampling import Batch, Sampling
from engine.errors import SourceFailed
from engine.ledger import (
    Event,
    FromTrainer,
    TrainerGone,
)
from engine.messages import Batch as BatchMessage
from engine.messages import (
    Cancel,
    Cancelled,
    Hello,
    Judged,
    Ping,
    Pong,
    Problem,
    Sample,
    Submit,
)
from engine.records import Task
from engine.sampling import Sealed, Spec, Verdict

from .sampling_world import World


@dataclass(slots=True, eq=False)
class Prompts:
    """A source that gives so many prompts, sometimes late, and then ends in its way."""

    world: World
    count: int
    way: Any
    given: int = 0
    end: Any = ""
    error: BaseException | None = None

    @property
    def is_over(self) -> bool:
        return bool(self.end)

    @property
    def why(self) -> str:
        return f"the prompts are {self.end}" if self.end else ""

    def ask(self, prompts: int) -> None:
        """There is no thread that would begin now."""

    def take(self, wait_s: float) -> Task | None:
        del wait_s
        if self.world.is_calm or self.world.rng.random() < 0.7:
            if self.given < self.count:
                self.given += 1
                return Task(f"t-{self.given - 1}", "kind", {})
            self.end = self.way
        return None

    def close(self) -> None:
        """Nothing runs."""


class Trainer:
    """One trainer with one sampling: its lives, and what it was told in all of them."""

    def __init__(self, world: World, client_id: str, spec: Spec) -> None:
        self.world = world
        self.client_id = client_id
        self.name = f"s-{client_id}"
        self.spec = spec
        self.reserved = ((spec.ahead + 1) * spec.groups + 1) * spec.group_size
        self.prompts = world.rng.choice([0, 3, 12, 40])
        self.way = world.rng.choice(["ended", "ended", "failed", "blocked"])
        self.batches: dict[int, Sealed] = {}
        self.finals: set[int] = set()
        self.verdicts: dict[int, Verdict] = {}
        self.given: dict[int, list[list[str]]] = {}
        self.uncountable: set[str] = set()
        self.late: set[str] = set()
        self.is_done = False
        self.is_closed = False
        self.link = 0
        self.lost: list[Any] = []  # sent on connections that broke; may come yet
        world.trainers[client_id] = self

    def start(self) -> None:
        """Begin a life that knows nothing of the one before."""
        if self.is_done:
            return
        self.hang_up()
        self.core = Core(self.client_id, self.world.rng.randint(1, 6), 1e9)
        self.core.start(self.world.now)
        self._open()

    def _open(self) -> None:
        self.sampling = Sampling(self.core, (), self.spec, self.name, 1e9)
        source: Any = Prompts(self.world, self.prompts, self.way)
        self.sampling._source = source
        self.batch: Batch | None = None

    def reopen(self) -> None:
        """Leave the sampling, and open it again in the same process."""
        if not self.is_done:
            self.sampling.leave()
            self._open()

    def walk_away(self) -> None:
        """Close the sampling in the middle of it."""
        if not self.is_done:
            self.is_done = self.is_closed = True
            self.sampling.close()

    def hang_up(self) -> None:
        """Lose the connection; the broker notices, and what was under way may still arrive."""
        if self.link:
            self.lost += [m for m in self.to_broker if isinstance(m, Submit | Sample)]
            self.world.handle(TrainerGone(self.client_id))
        self.link += 1
        self.is_known = False
        self.to_broker: deque[Any] = deque()
        self.to_trainer: deque[Any] = deque()

    def reconnect(self) -> None:
        """Break the connection without a crash."""
        self.hang_up()
        self.core._hello(self.world.now)

    # What the broker says

    def told(self, message: Any) -> None:
        match message:
            case BatchMessage(_, sealed, final):
                self._check_batch(sealed, final)
            case Judged(_, verdicts):
                for prompt, verdict in verdicts:
                    was = self.verdicts.setdefault(prompt, verdict)
                    assert was == verdict, f"{prompt} was {was}, now {verdict}"
                    assert not any(prompt in b.prompts for b in self.batches.values())
        if self.is_known:
            self.to_trainer.append(message)

    def _check_batch(self, sealed: Sealed, final: bool) -> None:
        was = self.batches.get(sealed.number)
        if was is not None:
            assert replace(was, report=sealed.report) == sealed, f"{was} became {sealed}"
            assert sealed.number not in self.finals or was == sealed, f"{was} was final: {sealed}"
        self.batches[sealed.number] = sealed
        if final:
            self.finals.add(sealed.number)
        every = [prompt for batch in self.batches.values() for prompt in batch.prompts]
        assert len(set(every)) == len(every), "a group is in one batch"
        assert not set(every) & set(self.verdicts), "a group in a batch has no verdict"
        assert sealed.report.kept.groups == len(sealed.prompts)
        if sealed.reason == "complete":
            assert len(sealed.prompts) == self.spec.groups
        else:
            assert sealed.last, f"{sealed} has a reason and is not the last"
            assert sealed.why
            assert len(sealed.prompts) < self.spec.groups
        assert sealed.reason != "full" or self.spec.staleness == "refill", sealed
        assert sealed.reason != "filter"

    def expect(self, event: Event) -> None:
        """Note rollouts that no report can count: accepted after the last one was final."""
        match event:
            case FromTrainer(client_id, Submit() as submit) if client_id == self.client_id:
                books = self.world.ledger._books
                sampling = books.samplings.get((client_id, self.name))
                fresh = {name for name in submit.rollout_ids if name not in books.rollouts}
                if sampling is None or not fresh:
                    return
                sampler = sampling.sampler
                if sampler.is_over and sampler.number - 1 not in sampler._settling.values():
                    self.uncountable |= fresh
                elif sampler.is_decided(submit.prompt):
                    self.late |= fresh

    def check_unacknowledged(self) -> None:
        """Nothing of a batch that was told and not taken has been acknowledged."""
        sampling = self.world.ledger._books.samplings.get((self.client_id, self.name))
        if sampling is None:
            return
        for number, batch in self.batches.items():
            for prompt in batch.prompts if number >= sampling.sampler.taken else ():
                assert sampling.submissions.get(prompt), f"prompt {prompt} is forgotten"
                for submission in sampling.submissions[prompt]:
                    for member in submission.members:
                        assert member.state != "acked", f"{member.rollout_id} is acknowledged"

    # What the trainer does

    def turn(self) -> None:
        """Let the client do what it does in every turn of its loop."""
        self.core.tick(self.world.now)
        if not self.is_closed:
            self.sampling.step(0.0)
        self.to_broker.extend(message for message, _ in self.core.outgoing)
        self.core.outgoing.clear()

    def work(self) -> None:
        """Take up the next batch, or be done with the one at hand."""
        if self.is_done:
            return
        if self.batch is not None:
            last = self.batch.number in self.batches and self.batches[self.batch.number].last
            if last and not self.batch.is_final:
                return
            self.batch = None
            self._finally(self.sampling.take)
            if not self.is_done:
                self.world.publish()
            return
        following = self.sampling._batches.get(self.sampling._taken)
        if following is not None and following.batch.last and not following.final:
            return
        self._finally(self._next)

    def _next(self) -> None:
        batch = self.batch = self.sampling.batch()
        if batch is None:
            return
        names = [sorted(rollout.rollout_id for rollout in group) for group in batch.groups]
        assert self.given.setdefault(batch.number, names) == names, "a batch is what it was"
        for group in batch.groups:
            self._check_group(group)

    def _finally(self, do: Any) -> None:
        try:
            do()
        except SourceFailed:
            last = self.batches[max(self.batches)]
            assert last.reason in {"failed", "blocked", "full"}, last
            self.is_done = True
        self.is_done = self.is_done or self.sampling.is_over

    def _check_group(self, group: list[Any]) -> None:
        assert len(group) == self.spec.group_size, group
        assert len({rollout.prompt for rollout in group}) == 1
        good = [each for each in group if each.reward is not None]
        assert len(good) >= self.spec.needed, group
        if self.spec.keep == "dapo":
            assert len({each.reward for each in good}) > 1, f"nothing to learn from {group}"

    def cancel(self, everything: bool) -> None:
        """Have some rollouts cancelled, or all."""
        books = self.world.ledger._books
        mine = [r for r in books.rollouts.values() if r.submission.client_id == self.client_id]
        if mine and self.is_known:
            some = tuple(dict.fromkeys(self.world.rng.choice(mine).rollout_id for _ in range(2)))
            self.to_broker.append(Cancel("c", () if everything else some, (), everything))

    def send(self) -> None:
        """Let the broker take one message, as its loop does."""
        if not self.to_broker:
            return
        message = self.to_broker.popleft()
        if isinstance(message, Hello):
            self.is_known = True
        if not self.is_known:
            self.to_trainer.append(Problem("hello_first", "", "say hello first"))
        elif isinstance(message, Ping):
            self.deliver(message)
            unacked = self.world.ledger.unacked(self.client_id)
            broker_id = f"broker-{self.world.life}"
            self.to_trainer.append(Pong(broker_id, message.nonce, unacked))
        else:
            self.deliver(message)

    def deliver(self, message: Any) -> None:
        size = 10 if isinstance(message, Submit) else 0
        self.world.handle(FromTrainer(self.client_id, message, size))

    def come_late(self) -> None:
        """Let something arrive that was sent on a connection before."""
        if self.lost and self.is_known and not self.is_closed:
            self.deliver(self.world.rng.choice(self.lost))

    def receive(self) -> None:
        """Let the trainer take one message."""
        if self.to_trainer:
            message = self.to_trainer.popleft()
            if not isinstance(message, Cancelled):
                self.core.receive(message, [], self.world.now)

    def close(self) -> None:
        """Close the sampling, once its last batch was taken."""
        if self.is_done and not self.is_closed:
            self._check_counts()
            self.is_closed = True
            self.sampling.close()

    def _check_counts(self) -> None:
        reports = [self.batches[number].report for number in sorted(self.batches)]
        assert sorted(self.batches) == list(range(len(reports))), "batches have no gaps"
        assert set(self.batches) == self.finals, "every batch became final"
        parts = [
            part for r in reports for part in (r.kept, r.dropped, r.failed, r.stale, r.cancelled)
        ]
        entries = [entry for _, entry in self.world.submitted if entry.client_id == self.client_id]
        every = sum(len(entry.rollout_ids) for entry in entries)
        counted = sum(part.rollouts for part in parts)
        spare = len(self.uncountable) + (len(self.late) if self.world.crashes else 0)
        assert every - spare <= counted <= every, f"{counted} of {every}: {reports}"
        names = {name for entry in entries for name in entry.rollout_ids} - self.uncountable
        judged = sum(part.groups for part in parts)
        prompts = {entry.prompt for entry in entries if set(entry.rollout_ids) & names}
        assert judged == len(prompts), f"{judged} groups of {len(prompts)}: {reports}"

    def is_over(self) -> bool:
        return self.is_closed and not self.core.outgoing and not self.to_broker
