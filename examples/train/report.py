"""What a run says: a line for each step, a summary, a plot, and trajectories to read.

Job: records into text, JSON and pictures.
Does not know: torch, rollmq's processes.
Invariants: a step is on disk before the next one begins. The summary of a run that did not finish
says so.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from engine import Rollout
from engine.output import FILE_NAME, write_rollout
from nodes.show import show_rollout


@dataclass(frozen=True, slots=True)
class Step:
    """One step of training.

    reward: mean over every rollout that ended for the batch, dropped groups included.
    informative: share of groups whose rewards differ. lag: versions between the weights that
    sampled and those that learned, mean over rollouts. ratio_*: importance ratios over tokens.
    diff_*: between delivered log-probabilities and the trainer's own, over `checked` tokens.
    seconds: waited for samples, spent checking, training, publishing.
    """

    number: int
    reward: float
    informative: float
    failed: int
    rollouts: int
    tokens: int
    lag: float
    ratio_mean: float
    ratio_max: float
    clipped: float
    diff_mean: float
    diff_max: float
    checked: int
    sampling_s: float
    checking_s: float
    training_s: float
    publishing_s: float

    def line(self) -> str:
        """Return it as a line for people."""
        return (
            f"step {self.number:3}  reward {self.reward:.3f}  informative {self.informative:.2f}  "
            f"lag {self.lag:.1f}  ratio {self.ratio_mean:.3f} max {self.ratio_max:.2f}  "
            f"logprob diff {self.diff_mean:.1e} max {self.diff_max:.1e} "
            f"({self.checked} of {self.tokens} tokens)  "
            f"sample {self.sampling_s:.1f} check {self.checking_s:.1f} "
            f"train {self.training_s:.1f} publish {self.publishing_s:.1f} s"
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """What summary.json holds. reward_*: of the same problems before and after; None if not run."""

    reward_first: float
    reward_last: float | None
    logprob_abs_diff_max: float
    logprob_abs_diff_mean: float
    logprob_abs_diff_bound: float
    tokens_checked: int
    steps: int
    minutes: float
    rollouts: int
    rollouts_failed: int
    finished: bool


def summarize(
    steps: Sequence[Step],
    first: float,
    last: float | None,
    bound: float,
    minutes: float,
    *,
    finished: bool,
) -> Summary:
    """Return the summary of a run."""
    checked = sum(step.checked for step in steps)
    total = sum(step.diff_mean * step.checked for step in steps)
    return Summary(
        reward_first=first,
        reward_last=last,
        logprob_abs_diff_max=max((step.diff_max for step in steps), default=0.0),
        logprob_abs_diff_mean=total / max(checked, 1),
        logprob_abs_diff_bound=bound,
        tokens_checked=checked,
        steps=len(steps),
        minutes=minutes,
        rollouts=sum(step.rollouts for step in steps),
        rollouts_failed=sum(step.failed for step in steps),
        finished=finished,
    )


def write_summary(out: Path, summary: Summary) -> None:
    """Write summary.json."""
    (out / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n")


def append_step(out: Path, step: Step) -> None:
    """Add a line to steps.jsonl."""
    with (out / "steps.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(step)) + "\n")


def write_trajectories(out: Path, before: Sequence[Rollout], after: Sequence[Rollout]) -> None:
    """Write all of them for `rollmq show`, and one problem's before and after as text.

    It is the first problem that was wrong before and right after; else the first one.
    """
    with (out / FILE_NAME).open("wb") as file:
        for rollout in [*before, *after]:
            write_rollout(file, rollout)
    pairs = list(zip(before, after, strict=True))
    turned = [pair for pair in pairs if pair[0].reward == 0.0 and pair[1].reward == 1.0]
    for name, rollout in zip(("before.txt", "after.txt"), (turned or pairs)[0], strict=True):
        with (out / name).open("w", encoding="utf-8") as file:
            show_rollout(rollout, console=Console(file=file, highlight=False, width=100))


def plot(steps: Sequence[Step], path: Path) -> None:
    """Draw reward, informative share, importance ratio and the time of each step."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second that only the end of a run needs

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after its backend is chosen

    numbers = [step.number for step in steps]
    figure, ((reward, share), (ratio, times)) = plt.subplots(2, 2, figsize=(10, 6), sharex=True)
    reward.plot(numbers, [step.reward for step in steps])
    reward.set(title="mean reward of all rollouts", ylim=(0, 1.02))
    share.plot(numbers, [step.informative for step in steps])
    share.set(title="share of groups that are informative", ylim=(0, 1.02))
    ratio.plot(numbers, [step.ratio_mean for step in steps], label="mean")
    ratio.plot(numbers, [step.ratio_max for step in steps], label="max")
    ratio.set(title="importance ratio", yscale="log", xlabel="step")
    ratio.legend()
    parts = ("sampling_s", "checking_s", "training_s", "publishing_s")
    labels = ("waiting for samples", "checking", "training", "publishing")
    times.stackplot(
        numbers, [[getattr(step, part) for step in steps] for part in parts], labels=labels
    )
    times.set(title="seconds a step", xlabel="step")
    times.legend(loc="upper right")
    for axes in (reward, share, ratio, times):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
