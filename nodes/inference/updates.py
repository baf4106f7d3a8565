"""One weight update over some backends: all of them hold the new weights in the end, or none.

    pausing -> loading -> resuming -> done          every backend has done each step
        |         `-> going back -> resuming        one could not, and the former weights are known
        `-> paused -> loading                       the trainer puts the new weights there itself

Job: say which step each backend has to do next, and what each holds in the end.
Does not know: sockets or clocks; `now` is an argument, in seconds. Nor sessions and requests.
Invariants: nobody loads before everybody has paused, and nobody resumes before everybody has loaded
or gone back. Every backend that was told to pause is told to resume. A backend that is gone is no
part of the update. A step that has no answer is asked for again, and again by its deadline, after
which the backend counts as failed. Where some have the new weights and the former ones cannot be
loaded again, the new ones stand, and those that failed are named.
"""

from dataclasses import dataclass, field
from typing import Literal

from .events import TellStep
from .messages import Pause, PauseMode, Resume, UpdateStep, UpdateWeights

Phase = Literal["pausing", "paused", "loading", "going back", "resuming", "done"]
Step = Pause | UpdateWeights | Resume
BACK = ".back"  # ends the update_id of the way back: a step repeated under its id is not done again


@dataclass(frozen=True, slots=True)
class Weights:
    """A version of the policy and where its weights are; the id is that of its update."""

    policy_version: int
    source: str
    update_id: str = ""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: for pausing and loading together, for each later step, and between repeats."""

    load_s: float
    step_s: float
    repeat_s: float


@dataclass(slots=True)
class Member:
    """A backend in an update: what it holds, and the steps of the phase that it still owes."""

    policy_version: int
    owed: list[Step] = field(default_factory=list)
    loaded: bool = False
    went_back: bool = False
    resumed: bool = False
    failed: str = ""
    told_at: float = 0.0


class Update:
    """One update; `phase` is "done" when it is over, and `holds` says whether the new weights do.

    `members` then says what each backend holds, and why it failed if it did.
    """

    def __init__(
        self,
        weights: Weights,
        mode: PauseMode,
        former: Weights | None,
        versions: dict[str, int],
        deadlines: Deadlines,
        *,
        stops: bool = False,
    ) -> None:
        self.weights = weights
        self.members = {name: Member(version) for name, version in versions.items()}
        self.phase: Phase = "pausing"
        self.holds = False
        self._mode: PauseMode = mode
        self._former = former if former is not None and former.source else None
        self._deadlines = deadlines
        self._stops = stops  # until `put`
        self._until = 0.0
        self._out: list[TellStep] = []

    def begin(self, now: float) -> list[TellStep]:
        """Tell every backend to pause."""
        self._until = now + self._deadlines.load_s
        pause = Pause(self.weights.update_id, self._mode)
        self._start("pausing", list(self.members), [pause], now)
        return self._go_on(now)

    def answered(self, name: str, step: UpdateStep, now: float) -> list[TellStep]:
        """Take a backend's answer to the step that it owes; any other answer is late."""
        member = self.members.get(name)
        if member is None or not member.owed:
            return []
        owed = member.owed[0]
        if (owed.update_id, owed.kind) != (step.update_id, step.step):
            return []
        member.policy_version = step.policy_version
        if step.error:
            self._fail(member, f"{step.step}: {step.error}")
        else:
            member.loaded = member.loaded or isinstance(owed, UpdateWeights)
            member.resumed = isinstance(owed, Resume)
            member.owed.pop(0)
            self._tell(name, member, now)
        return self._go_on(now)

    def put(self, now: float, error: str = "") -> list[TellStep]:
        """Go on: the trainer has put the weights there, or says why it could not."""
        if self.phase != "paused":
            return []
        if error:
            for member in self.members.values():
                self._fail(member, error)
            self._resume(now)
        else:
            self._load(now)
        return self._go_on(now)

    def gone(self, name: str, now: float) -> list[TellStep]:
        """Go on without a backend that is lost."""
        self.members.pop(name, None)
        return self._go_on(now)

    def tick(self, now: float) -> list[TellStep]:
        """Give up on steps that are late, and ask again for those that have no answer yet."""
        if self.phase == "done":
            return []
        if self.phase == "paused" and now >= self._until:
            return self.put(now, "the weights were not put there in time")
        for name, member in self.members.items():
            if member.owed and now >= self._until:
                self._fail(member, f"{member.owed[0].kind}: no answer in time")
            elif member.owed and now - member.told_at >= self._deadlines.repeat_s:
                self._tell(name, member, now)
        return self._go_on(now)

    def _fail(self, member: Member, why: str) -> None:
        member.failed = member.failed or why
        member.owed.clear()

    def _tell(self, name: str, member: Member, now: float) -> None:
        if member.owed:
            member.told_at = now
            self._out.append(TellStep(name, member.owed[0]))

    def _start(self, phase: Phase, names: list[str], steps: list[Step], now: float) -> None:
        self.phase = phase
        for name in names:
            member = self.members[name]
            member.owed = list(steps)
            self._tell(name, member, now)

    def _go_on(self, now: float) -> list[TellStep]:
        stands = {"done", "paused"} if self.members else {"done"}
        while self.phase not in stands and not any(member.owed for member in self.members.values()):
            self._next(now)
        out, self._out = self._out, []
        return out

    def _next(self, now: float) -> None:
        failed = any(member.failed for member in self.members.values())
        match self.phase:
            case "pausing" if failed:
                self._resume(now)
            case "pausing" if self._stops and self.members:
                self.phase = "paused"
            case "pausing" | "paused":
                self._load(now)
            case "loading":
                self._loaded(now, failed=failed)
            case "going back":
                self._resume(now)
            case "resuming":
                self.phase = "done"

    def _load(self, now: float) -> None:
        weights = self.weights
        load = UpdateWeights(weights.update_id, weights.policy_version, weights.source)
        self._start("loading", list(self.members), [load], now)

    def _loaded(self, now: float, *, failed: bool) -> None:
        loaded = [name for name, member in self.members.items() if member.loaded]
        former, update_id = self._former, self.weights.update_id + BACK
        self.holds = bool(loaded) and (not failed or former is None)
        if self.holds or not loaded or former is None:
            self._resume(now)
            return
        self._until = now + self._deadlines.step_s
        for name in loaded:
            self.members[name].went_back = True
        load = UpdateWeights(update_id, former.policy_version, former.source)
        self._start("going back", loaded, [Pause(update_id, "keep"), load], now)

    def _resume(self, now: float) -> None:
        self._until = now + self._deadlines.step_s
        self.phase = "resuming"
        for name, member in self.members.items():
            update_id = self.weights.update_id + (BACK if member.went_back else "")
            self._start("resuming", [name], [Resume(update_id)], now)
