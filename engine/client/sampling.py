"""A sampling on the trainer's side: prompts out as they are wanted, batches in as they complete.

Job: submit, gather results by prompt, hold those that may be needed, acknowledge the others.
Does not know: sockets or the clock; the two clients pump the core around it.
Invariants: a prompt is submitted once, in order, unless the broker asks for refills; nothing of a
batch is acknowledged before the caller is done with it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from uuid import uuid4

from ..errors import ClientError, Refused, SourceFailed, StateLost
from ..messages import Batch as BatchMessage
from ..messages import Judged, Sample, Wanted
from ..records import Task
from ..sampling import BatchReport, Over, Reason, Sealed, Spec, Staleness
from ..trajectories import Rollout
from .core import Core, Submission
from .feed import answered
from .requests import submit_message
from .sequence import Sequence
from .source import Source


@dataclass(slots=True)
class Batch:
    """A batch of groups that the filter kept.

    `report` has its last figures once `is_final`: when the last rollout that was cancelled for it
    has ended, soon after.
    """

    number: int
    groups: list[list[Rollout]]
    reason: Reason
    why: str
    report: BatchReport
    is_final: bool


@dataclass(slots=True)
class Prompt:
    """What is known of one prompt: its task, if it may be needed again, and its results."""

    task: Task | None = None
    submitted: int = 0
    rollouts: dict[str, Rollout] = field(default_factory=dict)


def spec_of(
    groups: int,
    group_size: int,
    keep: str | tuple[str, dict[str, float]],
    over: Over,
    ahead: int,
    members: int,
    staleness: Staleness,
    staleness_bound: int,
    *,
    stop_early: bool,
    margin: float,
    in_flight: int,
) -> Spec:
    """Return what a call asks for.

    Raises: ValueError if a number is out of bounds.
    """
    if min(groups, group_size) < 1 or min(ahead, members, staleness_bound, in_flight) < 0:
        raise ValueError("groups and group_size must be at least 1, and the others at least 0")
    name, arguments = (keep, {}) if isinstance(keep, str) else keep
    floats = {key: float(value) for key, value in arguments.items()}
    return Spec(
        groups,
        group_size,
        name,
        floats,
        over,
        ahead,
        members,
        staleness,
        staleness_bound,
        stop_early,
        float(margin),
        in_flight,
    )


class Sampling:
    """One call of `sample`."""

    def __init__(
        self, core: Core, tasks: Iterable[Task], spec: Spec, name: str | None, patience_s: float
    ) -> None:
        self._core = core
        self._spec = spec
        self._name = name or f"sampling-{uuid4().hex[:12]}"
        self._lasts = name is not None
        self._left = False
        self._source = Source(tasks, patience_s)
        self._prompts: dict[int, Prompt] = {}
        self._flying: list[Submission] = []
        self._wanted: Wanted | None = None
        self._skipped = 0  # prompts that an earlier life of the trainer had submitted
        self._next = 0
        self._told_end = False
        self._batches: dict[int, BatchMessage] = {}
        self._given: Batch | None = None
        self._unsettled: dict[int, Batch] = {}  # given, and the report will change
        self._decided = Sequence()  # prompts, counted from 1, of which nothing is needed any more
        self._over = False
        self._error: Exception | None = None
        earlier, self._taken = core.open_sampling(self._name, self)
        for rollout in earlier:
            self.add(rollout)
        self.welcome()

    @property
    def is_over(self) -> bool:
        """Whether the last batch was taken."""
        return self._over

    def step(self, wait_s: float) -> None:
        """Submit what is wanted, as far as the source gives it, waiting a moment for it.

        What goes wrong is raised by `batch`: not to whoever moves messages for all samplings.
        """
        try:
            self._flying = [each for each in self._flying if not answered(each)]
        except ClientError as wrong:
            self._error = wrong
        if self._error is not None or self._wanted is None:
            return
        for prompt, rollouts in self._wanted.refills:
            self._refill(prompt, rollouts)
        if not self._told_end:
            self._submit_wanted(self._wanted.prompts, wait_s)

    def batch(self) -> Batch | None:
        """Return the next batch once all of its results are here; it is then the caller's.

        Raises: SourceFailed after the last one, if the source did not just end; Refused; StateLost;
        what a submit was refused with.
        """
        if self._error is not None:
            raise self._error
        message = self._batches.get(self._taken)
        if self._wanted is None or message is None or not self._is_here(message.batch):
            return None
        sealed = message.batch
        if sealed.last and not sealed.prompts and _is_empty(sealed.report):
            self._over = True
            self._fail(sealed)
            return None
        self._given = self._build(message)
        if not message.final:
            self._unsettled[sealed.number] = self._given
        return self._given

    def take(self) -> None:
        """Be done with the batch that was returned last.

        Raises: SourceFailed after the last one, if the source did not just end.
        """
        if self._given is None:
            return
        sealed = self._batches.pop(self._taken).batch
        for number in sealed.prompts:
            self._core.forget(rollout.seq for rollout in self._prompts[number].rollouts.values())
            del self._prompts[number]
            self._decided.add(number + 1)
        self._taken += 1
        self._given = None
        self._tell()
        if sealed.last:
            self._over = True
            self._fail(sealed)

    def leave(self) -> None:
        """Take part no more; the broker keeps the sampling for whoever opens it again."""
        self._left = True
        self._source.close()
        for submission in self._flying:
            self._core.give_up(submission)
        held = [each for prompt in self._prompts.values() for each in prompt.rollouts.values()]
        self._core.leave_sampling(self._name, held, self._taken)

    def close(self) -> None:
        """Leave, have what is open cancelled, and let the broker forget the sampling."""
        self.leave()
        self._core.end_sampling(self._name)

    def finish(self) -> None:
        """Leave a sampling that has a name and more batches, and close any other."""
        if self._left:
            return
        if self._over or not self._lasts:
            self.close()
        else:
            self.leave()

    def add(self, rollout: Rollout) -> None:
        """Take a result: held until its group has a verdict."""
        if rollout.prompt + 1 in self._decided:
            self._core.acknowledge([rollout.seq])
            return
        prompt = self._prompts.setdefault(rollout.prompt, Prompt())
        prompt.rollouts[rollout.rollout_id] = rollout
        self._core.hold(rollout.seq)

    def hear(self, message: Wanted | Judged | BatchMessage) -> None:
        """Take what the broker says."""
        match message:
            case Wanted():
                self._resume(message)
                self._wanted = message
            case Judged():
                for number, _ in message.verdicts:
                    self._drop(number)
            case BatchMessage(_, sealed, final):
                if sealed.number >= self._taken:
                    self._batches[sealed.number] = message
                given = self._unsettled.get(sealed.number)
                if given is not None:
                    given.report, given.is_final = sealed.report, final
                if final:
                    self._unsettled.pop(sealed.number, None)

    def refuse(self, why: str) -> None:
        """Take that the broker will not have this sampling."""
        self._error = Refused("invalid", why)

    def welcome(self) -> None:
        """Tell the broker how far we are."""
        self._tell(again=True)

    def _tell(self, *, again: bool = False) -> None:
        end = self._source.end if self._told_end else ""
        why = self._source.why if self._told_end else ""
        self._core.say(Sample(self._name, self._spec, self._taken, end, self._next, why, again))

    def _resume(self, message: Wanted) -> None:
        if self._wanted is None:
            self._skipped = message.accepted
        elif message.accepted < self._wanted.accepted or message.taken < self._wanted.taken:
            self._error = StateLost("the broker has forgotten a sampling that it had accepted")
        self._taken = max(self._taken, message.taken)  # the first may be from before we left it
        self._batches = {n: each for n, each in self._batches.items() if n >= self._taken}

    def _submit_wanted(self, prompts: int, wait_s: float) -> None:
        self._source.ask(prompts)
        while self._next < prompts:
            task = self._source.take(wait_s)
            if task is None:
                break
            self._submit(task)
        if self._source.is_over and not self._flying:
            self._told_end = True
            self._tell()

    def _submit(self, task: Task) -> None:
        number, self._next = self._next, self._next + 1
        refills = self._spec.staleness == "refill"
        if number >= self._skipped:
            prompt = self._prompts.setdefault(number, Prompt())
            self._send(number, prompt, task, self._spec.group_size)
            prompt.task = task if refills else None
        elif refills and number + 1 not in self._decided:
            self._prompts.setdefault(number, Prompt()).task = task

    def _refill(self, number: int, rollouts: int) -> None:
        prompt = self._prompts.get(number)
        if prompt is not None and prompt.task is not None:
            prompt.submitted = max(prompt.submitted, self._spec.group_size)
            if rollouts > prompt.submitted:
                self._send(number, prompt, prompt.task, rollouts)

    def _send(self, number: int, prompt: Prompt, task: Task, rollouts: int) -> None:
        group, size = f"{self._name}-{number}", self._spec.group_size
        names = [f"{group}-{member}" for member in range(prompt.submitted, rollouts)]
        prompt.submitted = rollouts
        for first in range(0, len(names), size):
            some = names[first : first + size]
            message, body = submit_message(task, size, group, some, 0, (self._name, number))
            self._flying.append(self._core.submit(message, body, wait=True))

    def _drop(self, number: int) -> None:
        self._decided.add(number + 1)
        prompt = self._prompts.pop(number, None)
        if prompt is not None:
            self._core.acknowledge([rollout.seq for rollout in prompt.rollouts.values()])

    def _is_here(self, sealed: Sealed) -> bool:
        left_out = set(sealed.left_out)
        return all(
            len(self._members(number, left_out)) >= self._spec.group_size
            for number in sealed.prompts
        )

    def _members(self, number: int, left_out: set[str]) -> list[Rollout]:
        prompt = self._prompts.get(number)
        if prompt is None:
            return []
        return [each for name, each in prompt.rollouts.items() if name not in left_out]

    def _build(self, message: BatchMessage) -> Batch:
        sealed = message.batch
        left_out, withheld = set(sealed.left_out), set(sealed.withheld)
        groups = [
            [
                replace(each, trainable=False) if each.rollout_id in withheld else each
                for each in self._members(number, left_out)
            ]
            for number in sealed.prompts
        ]
        return Batch(sealed.number, groups, sealed.reason, sealed.why, sealed.report, message.final)

    def _fail(self, sealed: Sealed) -> None:
        if sealed.reason in {"failed", "blocked", "filter", "full"}:
            raise SourceFailed(sealed.why) from self._source.error


def _is_empty(report: BatchReport) -> bool:
    parts = (report.kept, report.dropped, report.failed, report.stale, report.cancelled)
    return not any(part.groups for part in parts)
