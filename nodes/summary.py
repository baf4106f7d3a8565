"""What a run's conversations with the policy amount to, for the run's summary.

Job: add up the turns that the agent loop left in each rollout's `run` data.
Does not know: outcomes, rewards and rates; the engine counts those.
Invariants: a rollout of a task kind that leaves no turns of this form counts for nothing. Shares
are of the time that conversations took in all: in a backend's queue, in the model, in tools, and
elsewhere.
"""

from statistics import median
from typing import Any

from engine.trajectories import Rollout

NEEDED = {
    "prompt",
    "completion",
    "cached_tokens",
    "seconds",
    "queue_s",
    "prefill_s",
    "decode_s",
    "tools",
    "aborts",
}


class Turns:
    """Adds up turns as their rollouts arrive; a section of the engine's summary."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._sums = dict.fromkeys(
            ("prompt", "cached", "sampled", "queue_s", "model_s", "tool_s", "errors", "aborts"), 0.0
        )
        self._rollouts = self._segments = 0
        self._work_s = 0.0

    def add(self, rollout: Rollout) -> None:
        """Count one rollout, if it left turns."""
        ran = rollout.data.get("run") or {}
        turns = ran.get("turns") or []
        if not turns or not all(turn.keys() >= NEEDED for turn in turns):
            return
        self._rollouts += 1
        self._segments += len(ran.get("segments", ()))
        self._work_s += sum(each.work_s for each in rollout.timings if each.stage == "run")
        for turn in turns:
            self._add_turn(turn)

    def report(self) -> dict[str, float]:
        """Return figures by name; empty if there were no turns. Times in seconds, shares of 1."""
        if not self._seconds:
            return {}
        sums, turns = self._sums, len(self._seconds)
        elsewhere = max(0.0, self._work_s - sum(self._seconds) - sums["tool_s"])
        whole = sum(self._seconds) + sums["tool_s"] + elsewhere
        ordered = sorted(self._seconds)
        return {
            "turns": turns,
            "turns_per_rollout": turns / self._rollouts,
            "segments_per_rollout": self._segments / self._rollouts,
            "tokens_per_turn": sums["sampled"] / turns,
            "prefix_hit_rate": sums["cached"] / max(1.0, sums["prompt"]),
            "turn_p50_s": median(ordered),
            "turn_p99_s": ordered[round(0.99 * (turns - 1))],
            "model_share": _share(sums["model_s"], whole),
            "queue_share": _share(sums["queue_s"], whole),
            "transport_share": _share(
                sum(self._seconds) - sums["model_s"] - sums["queue_s"], whole
            ),
            "tool_share": _share(sums["tool_s"], whole),
            "tool_errors": sums["errors"],
            "aborts": sums["aborts"],
        }

    def _add_turn(self, turn: dict[str, Any]) -> None:
        sums = self._sums
        self._seconds.append(turn["seconds"])
        sums["prompt"] += turn["prompt"][1] - turn["prompt"][0]
        sums["cached"] += turn["cached_tokens"]
        sums["sampled"] += turn["completion"][1] - turn["completion"][0]
        sums["queue_s"] += turn["queue_s"]
        sums["model_s"] += turn["prefill_s"] + turn["decode_s"]
        sums["tool_s"] += sum(used["seconds"] for used in turn["tools"])
        sums["errors"] += sum(bool(used["error"]) for used in turn["tools"])
        sums["aborts"] += turn["aborts"]


def _share(part: float, whole: float) -> float:
    return max(0.0, part) / whole if whole > 0 else 0.0
