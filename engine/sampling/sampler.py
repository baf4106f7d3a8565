"""The rules of dynamic sampling as a pure state machine, beside the ledger.

Job: say how many prompts are wanted, judge groups as their members end, complete batches, and say
what to stop. Events come in as method calls; decisions gather in `decisions`.
Does not know: the ledger, messages, journal, clock (`now` is an argument, in seconds) or who asks.
Invariants: a group has one verdict in the end, and is in at most one batch; a complete batch has as
many groups as were asked for; every rollout accepted before the last batch is final is counted in
exactly one tally of one report (what is carried is counted a second time, as such).
"""

import sys
from collections import deque
from collections.abc import Iterable
from math import ceil
from typing import Literal

from msgspec.structs import replace

from ..errors import FilterError
from .filters import Filter
from .groups import Complete, Decision, Group, Judge, Stop, StopStale
from .records import BatchReport, Ending, Member, Reason, Sealed, SourceEnd, Spec, Tally, Verdict
from .reports import counted, residual_s, tally
from .state import ClosedState, GroupState, SamplerState

REFILLS = 3  # times its size that a group is run again before it is given up
REMEMBERED = 1024  # durations, for the estimate of what early termination saves


class Sampler:
    """A sampling: the batch that fills, the groups that are open, and the batches not yet taken."""

    def __init__(self, spec: Spec, keep: Filter, version: int, now: float) -> None:
        self.spec = spec
        self.version = version
        self.decisions: list[Decision] = []
        self.source: Ending = ""
        self.why = ""
        self.changes = 0  # of what a restart could not learn from the rollouts themselves
        self.wanted = 0
        self.taken = 0
        self.number = 0
        self.live = 0
        self.sealed: list[Sealed] = []
        self.verdicts: dict[int, Verdict] = {}  # of groups in no batch, until forgotten
        self._keep = keep
        self._first_version = version
        self._given: int | None = None  # prompts that the source gave, once it has ended
        self._accepted = 0  # every prompt before this one was accepted
        self._beyond: set[int] = set()
        self._groups: dict[int, Group] = {}  # without a verdict, or kept in the batch that fills
        self._kept: dict[int, None] = {}
        self._kept_before = 0
        self._judged_before = 0
        self._closed: dict[int, Group] = {}  # with a verdict, and rollouts that have not ended
        self._settling: dict[int, int] = {}  # of them, the batch whose report counts them
        self._counted: dict[int, set[str]] = {}  # at a restart: of them, what reports have already
        self._uncounted: list[tuple[int, Member]] = []
        self._report = BatchReport()
        self._began = now
        self._over = False
        self._durations: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def accepted(self) -> int:
        """The lowest prompt that was not accepted yet."""
        return self._accepted

    @property
    def promised(self) -> int:
        """Prompts that were asked for and have not come, of those that can."""
        if self._is_aborted():
            return 0
        wanted = self.wanted if self._given is None else min(self.wanted, self._given)
        return max(0, wanted - self._accepted - len(self._beyond))

    @property
    def open(self) -> int:
        """Groups without a verdict."""
        return len(self._groups) - len(self._kept)

    @property
    def kept(self) -> int:
        """Groups in the batch that fills."""
        return len(self._kept)

    @property
    def is_over(self) -> bool:
        """Whether its last batch is complete."""
        return self._over

    def refills(self) -> tuple[tuple[int, int], ...]:
        """Return (prompt, rollouts that its group shall have in all) where some are missing."""
        size = self.spec.group_size
        return tuple(
            (group.prompt, size + group.refills)
            for group in self._groups.values()
            if group.refills and group.accepted < size + group.refills
        )

    def room(self) -> int:
        """Return how many more prompts its own rules allow to be asked for."""
        spec = self.spec
        if self.source or self.number > self.taken + spec.ahead:
            return 0
        most = sys.maxsize
        if spec.in_flight:
            free = (spec.in_flight - self.live) // spec.group_size
            most = self.open + (free if self.live else max(1, free))
        if spec.margin:
            kept = self._kept_before + len(self._kept)
            share = (kept + 1) / (self._judged_before + len(self._kept) + 2)  # as if 1 of 2 before
            missing = spec.groups - len(self._kept)
            most = min(most, max(1, ceil(missing * spec.margin / share)))
        if spec.staleness == "pace":
            versions = max(0, self.version - self._first_version) + spec.bound + 1
            most = min(most, versions * spec.groups - self._kept_before - len(self._kept))
        return max(0, most - self.open - self.promised)

    def is_decided(self, prompt: int) -> bool:
        """Whether a prompt's group had its verdict, or is in a complete batch."""
        known = prompt < self._accepted or prompt in self._beyond
        return known and prompt not in self._groups

    def allows(self, prompt: int, rollouts: int) -> bool:
        """Whether so many rollouts fit a prompt: a whole group, or refills that are wanted."""
        group, size = self._groups.get(prompt), self.spec.group_size
        if group is None:
            return rollouts == size or self.is_decided(prompt)
        return group.accepted + rollouts <= size + group.refills

    def want(self) -> None:
        """Ask for one more prompt."""
        self.wanted = max(self.wanted, self._accepted + len(self._beyond)) + 1

    def accept(self, prompt: int, rollouts: int, now: float) -> None:
        """Take up rollouts of a prompt: a new group, or refills of one."""
        self.live += rollouts
        group = self._groups.get(prompt)
        if self.is_decided(prompt):
            self.changes += 1
            group = self._closed.setdefault(prompt, Group(prompt, now))
            self._settle_in_last(prompt)
            self.decisions.append(Stop(prompt))
        elif group is None:
            group = self._groups[prompt] = Group(prompt, now)
        group.accepted += rollouts
        self._count_prompt(prompt)
        if self._over and prompt in self._groups:
            self._settle_in_last(prompt)
            self._close(group, "cancelled")

    def end(self, prompt: int, member: Member, now: float) -> None:
        """Take up a member that has ended, and judge its group if that decides it."""
        self.live -= 1
        group = self._groups.get(prompt)
        if group is None:
            self._late(prompt, member, now)
            return
        group.members[member.rollout_id] = member
        if member.is_good:
            self._durations.append(now - group.began)
        if member.rollout_id in group.stopped:
            group.stopped.discard(member.rollout_id)
            group.replaced.add(member.rollout_id)
        if prompt not in self._kept:
            self._judge(group)
        self._advance(now)

    def age(self, version: int, live: Iterable[tuple[int, str, int]], now: float) -> None:
        """Take up new weights; `live` is (prompt, rollout_id, version) of rollouts under way."""
        self.version = version
        stale: dict[int, list[str]] = {}
        if self.spec.staleness in {"drop", "refill"}:
            for prompt, rollout_id, first in live:
                if version - first > self.spec.bound:
                    stale.setdefault(prompt, []).append(rollout_id)
        for group in list(self._groups.values()):
            if group.prompt in self._groups:
                self._stop_stale(group, stale.get(group.prompt, ()))
                self._judge_again(group, now)
        self._advance(now)

    def end_source(self, end: SourceEnd, given: int, why: str, now: float) -> None:
        """No more prompts come than the `given`; the last batch is as full as they make it."""
        if not self.source and end:
            self.changes += 1
            self.source, self.why, self._given = end, why, given
            self._advance(now)

    def abort(self, reason: Literal["cancelled", "full"], why: str, now: float) -> None:
        """Complete the last batch with what is kept, and cancel the rest."""
        if not self._over:
            self.source, self.why, self._given = reason, why, None
            self._seal(reason, now)

    def take(self, taken: int) -> list[int]:
        """Let go of every batch before `taken`, which the trainer has; return their prompts.

        One whose report will change stays among the sealed ones, and is told once more.
        """
        over = [batch for batch in self.sealed if self.taken <= batch.number < taken]
        self.changes += bool(over)
        self.taken = max(self.taken, min(taken, self.number))
        self.sealed = [b for b in self.sealed if b.number >= self.taken or not self.is_final(b)]
        return [prompt for batch in over for prompt in batch.prompts]

    def forget(self, prompt: int) -> None:
        """Forget a verdict: the group's results are all acknowledged."""
        self.changes += self.verdicts.pop(prompt, None) is not None

    def is_final(self, batch: Sealed) -> bool:
        """Whether a batch's report will not change again."""
        return batch.number not in self._settling.values()

    def state(self, now: float) -> SamplerState:
        """Return what a restart cannot learn from the rollouts themselves."""
        return SamplerState(
            spec=self.spec,
            source=self.source,
            why=self.why,
            given=self._given,
            taken=self.taken,
            number=self.number,
            accepted=self._accepted,
            beyond=tuple(sorted(self._beyond)),
            open=tuple(prompt for prompt in self._groups if prompt not in self._kept),
            kept=tuple(self._kept),
            kept_before=self._kept_before,
            judged_before=self._judged_before,
            first_version=self._first_version,
            sealed=tuple(self.sealed),
            verdicts=tuple(self.verdicts.items()),
            settling=tuple(self._settling.items()),
            closed=tuple(
                ClosedState(g.prompt, tuple(sorted(g.members))) for g in self._closed.values()
            ),
            refilled=tuple(
                GroupState(g.prompt, g.refills, tuple(sorted(g.replaced | g.stopped)))
                for g in self._groups.values()
                if g.refills
            ),
            report=self._report,
            elapsed_s=max(0.0, now - self._began),
            over=self._over,
        )

    @classmethod
    def restored(cls, state: SamplerState, keep: Filter, version: int, now: float) -> "Sampler":
        """Return the sampler of a state, without its groups: `resume` each, then `settle`."""
        sampler = cls(state.spec, keep, version, now - state.elapsed_s)
        sampler.source, sampler.why, sampler._given = state.source, state.why, state.given
        sampler.wanted, sampler.taken, sampler.number = state.given or 0, state.taken, state.number
        sampler._accepted, sampler._beyond = state.accepted, set(state.beyond)
        sampler._kept, sampler._kept_before = dict.fromkeys(state.kept), state.kept_before
        sampler._judged_before, sampler._first_version = state.judged_before, state.first_version
        sampler.sealed, sampler.verdicts = list(state.sealed), dict(state.verdicts)
        sampler._settling = dict(state.settling)
        sampler._report, sampler._over = state.report, state.over
        for prompt in (*state.open, *state.kept):
            sampler._groups[prompt] = Group(prompt, now)
        for group in state.refilled:
            sampler._groups[group.prompt].refills = group.refills
            sampler._groups[group.prompt].stopped = set(group.replaced)
        sampler._counted = {closed.prompt: set(closed.counted) for closed in state.closed}
        return sampler

    def resume(self, prompt: int, rollouts: int, ended: Iterable[Member], now: float) -> None:
        """Take up a group that a journal brought back: how many rollouts, and which have ended."""
        members = {member.rollout_id: member for member in ended}
        self.live += rollouts - len(members)
        group = self._groups.get(prompt)
        if self.is_decided(prompt):
            counted = self._counted.get(prompt, set(members))
            group = self._closed[prompt] = Group(prompt, now, rollouts)
            group.members = {name: m for name, m in members.items() if name in counted}
            self._uncounted += [(prompt, m) for name, m in members.items() if name not in counted]
            return
        if group is None:
            group = self._groups[prompt] = Group(prompt, now)
        group.accepted = rollouts
        group.members = members
        group.replaced = group.stopped & set(members)
        group.stopped -= group.replaced
        self._count_prompt(prompt)

    def settle(self, now: float) -> None:
        """Count and judge what had ended before a restart and was not counted or judged then."""
        uncounted, self._uncounted, self._counted = self._uncounted, [], {}
        for prompt, member in uncounted:
            self._late(prompt, member, now)
        self._closed = {prompt: group for prompt, group in self._closed.items() if group.live}
        self._settling = {p: number for p, number in self._settling.items() if p in self._closed}
        self.decisions += [Stop(prompt) for prompt in self._closed]
        for group in list(self._groups.values()):
            if group.stopped:
                self.decisions.append(StopStale(tuple(sorted(group.stopped))))
            if group.prompt in self._groups and self._over:
                self._settle_in_last(group.prompt)
                self._close(group, "cancelled")
            elif group.prompt in self._groups:
                self._judge_again(group, now)
        self._advance(now)

    def sizes(self) -> dict[int, tuple[int, int]]:
        """Return (rollouts, of them ended) of every prompt that has any under way or undecided."""
        groups = {**self._groups, **self._closed}
        return {g.prompt: (g.accepted, len(g.members)) for g in groups.values()}

    def _count_prompt(self, prompt: int) -> None:
        if prompt >= self._accepted:
            self._beyond.add(prompt)
        while self._accepted in self._beyond:
            self._beyond.remove(self._accepted)
            self._accepted += 1

    def _all_accepted(self) -> bool:
        return self._given is None or self._accepted >= self._given

    def _is_aborted(self) -> bool:
        return self.source in {"cancelled", "full", "filter"}

    def _stop_stale(self, group: Group, rollout_ids: Iterable[str]) -> None:
        fresh = [name for name in rollout_ids if name not in group.stopped]
        if not fresh:
            return
        self.decisions.append(StopStale(tuple(fresh)))
        if self.spec.staleness == "drop":
            self._close(group, "stale")
        else:
            group.stopped.update(fresh)
            self._refill(group, len(fresh))

    def _refill(self, group: Group, rollouts: int) -> None:
        if not rollouts:
            return
        self.changes += 1
        group.refills += rollouts
        self._report = replace(self._report, refilled=self._report.refilled + rollouts)
        if group.refills > REFILLS * self.spec.group_size:
            self._close(group, "stale")

    def _judge_again(self, group: Group, now: float) -> None:
        """Judge a group anew, a kept one too if it is too old."""
        if group.prompt in self._kept and group.is_too_old(self.spec, self.version):
            del self._kept[group.prompt]
        if group.prompt in self._groups and group.prompt not in self._kept:
            self._judge(group)
            self._advance(now)

    def _judge(self, group: Group) -> None:
        """Give a group its verdict, if what has ended decides it."""
        try:
            self._weigh(group)
        except FilterError as wrong:
            self._close(group, "failed")
            self.source, self.why, self._given = "filter", str(wrong), None

    def _weigh(self, group: Group) -> None:
        spec = self.spec
        if spec.staleness in {"drop", "refill"}:
            stale = [member.rollout_id for member in group.stale(spec, self.version)]
            if stale and spec.staleness == "drop":
                self._close(group, "stale")
                return
            group.replaced.update(stale)
            self._refill(group, len(stale))
            if group.prompt not in self._groups:
                return
        good, present = group.good, group.present
        missing = spec.group_size - len(present)
        if len(present) - len(good) > spec.group_size - spec.needed:
            self._close(group, "failed")
        elif missing > 0:
            if spec.stop_early and self._keep.is_hopeless(good, missing):
                early = self._report.stopped_early + 1
                self._report = replace(self._report, stopped_early=early)
                self._close(group, "dropped")
        elif spec.staleness == "withhold" and group.is_too_old(spec, self.version):
            self._close(group, "stale")
        elif self._keep.judge(good):
            self.changes += 1
            self._kept[group.prompt] = None
        else:
            self._close(group, "dropped")

    def _close(self, group: Group, verdict: Verdict) -> None:
        """Give a group a verdict that keeps it out of every batch; what is under way is stopped."""
        self.changes += 1
        del self._groups[group.prompt]
        self.verdicts[group.prompt] = verdict
        self._judged_before += verdict == "dropped"
        spent, settling = tally(group.members.values()), self._settling.get(group.prompt)
        self._count(verdict, replace(spent, groups=1), settling)
        self.decisions.append(Judge(group.prompt, verdict))
        if group.live:
            self._closed[group.prompt] = group
            self.decisions.append(Stop(group.prompt))

    def _late(self, prompt: int, member: Member, now: float) -> None:
        """Count the end of a rollout whose group has its verdict already."""
        group = self._closed.get(prompt)
        if group is None:
            return
        self.changes += 1
        group.members[member.rollout_id] = member
        number = self._settling.get(prompt)
        self._count(self.verdicts.get(prompt, "stale"), tally([member]), number)
        if not group.live:
            del self._closed[prompt]
            self._settling.pop(prompt, None)
        told = [batch for batch in self.sealed if batch.number == number and self.is_final(batch)]
        self.decisions += [Complete(batch, final=True) for batch in told]
        self._advance(now)

    def _count(self, verdict: Verdict, more: Tally, number: int | None = None) -> None:
        """Count in the report of a batch that is complete, or of the one that fills."""
        if number is None:
            self._report = counted(self._report, verdict, more)
            return
        self.sealed = [
            replace(batch, report=counted(batch.report, verdict, more))
            if batch.number == number
            else batch
            for batch in self.sealed
        ]

    def _settle_in_last(self, prompt: int) -> None:
        """Count what comes after the last batch with that, as long as its report may change."""
        last = self.number - 1
        if self._over and last in self._settling.values():
            self._settling.setdefault(prompt, last)

    def _advance(self, now: float) -> None:
        """Complete the batch if it is full, or if nothing more can come."""
        if self._over:
            return
        if self.source == "filter":
            self._seal("filter", now)
        elif len(self._kept) >= self.spec.groups:
            self._seal("complete", now)
        elif self.source and not self.open and self._all_accepted():
            self._seal(self.source, now)

    def _seal(self, reason: Reason, now: float) -> None:
        self.changes += 1
        kept = [self._groups.pop(prompt) for prompt in self._kept]
        rest = list(self._groups.values())
        carried = Tally()
        if self.spec.over == "carry" and not self._is_aborted():
            for group in rest:
                carried = carried.plus(replace(tally(group.members.values()), groups=1))
        else:
            self._report = replace(self._report, saved_s=residual_s(rest, self._durations, now))
            for group in rest:
                self._close(group, "cancelled")
                if group.live:
                    self._settling[group.prompt] = self.number
        self._closed.update((group.prompt, group) for group in kept if group.live)
        self._over = bool(self.source) and not self._groups and self._all_accepted()
        if self._over:
            self._settling = {**dict.fromkeys(self._closed, self.number), **self._settling}
        batch = self._batch(reason, kept, carried, now)
        self._kept_before += len(kept)
        self._judged_before += len(kept)
        self.sealed.append(batch)
        self.number += 1
        self._kept, self._report, self._began = {}, BatchReport(), now
        self.decisions.append(Complete(batch, final=self.is_final(batch)))

    def _batch(self, reason: Reason, kept: list[Group], carried: Tally, now: float) -> Sealed:
        present = [member for group in kept for member in group.present]
        left_out = [m for g in kept for name, m in g.members.items() if name in g.replaced]
        stopping = [name for group in kept for name in sorted(group.stopped)]
        withheld = tuple(
            m.rollout_id for group in kept for m in group.stale(self.spec, self.version)
        )
        report = replace(
            self._report,
            kept=replace(tally(present), groups=len(kept)),
            stale=self._report.stale.plus(tally(left_out)),
            carried=carried,
            withheld=len(withheld),
            seconds=max(0.0, now - self._began),
        )
        return Sealed(
            number=self.number,
            reason=reason,
            why="" if reason == "complete" else self.why,
            prompts=tuple(group.prompt for group in kept),
            left_out=(*(member.rollout_id for member in left_out), *stopping),
            withheld=withheld,
            report=report,
            last=self._over,
        )
