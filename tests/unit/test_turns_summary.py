"""What a run's conversations amount to, and how the engine's summary takes it in."""

import io
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

import pytest
from rich.console import Console

from engine.display import print_summary
from engine.records import StageTiming
from engine.summary import Summary
from engine.trajectories import Rollout
from nodes.summary import Turns

TURN: dict[str, Any] = {
    "segment": 0,
    "prompt": [0, 100],
    "completion": [100, 120],
    "cached_tokens": 80,
    "finish_reason": "stop",
    "aborts": 1,
    "seconds": 2.0,
    "queue_s": 0.5,
    "prefill_s": 0.25,
    "decode_s": 0.75,
    "backend": "b",
    "tools": [{"name": "add", "seconds": 1.0, "error": "no"}],
}
ROLLOUT = Rollout(
    rollout_id="r",
    group_id="g",
    group_size=1,
    task_id="t",
    seq=1,
    outcome="completed",
    reward=1.0,
    rewards={},
    trainable=True,
    trajectory=None,
    data={"run": {"turns": [TURN, {**TURN, "seconds": 1.0, "tools": []}], "segments": [{}]}},
    arrays={},
    failures=(),
    timings=(StageTiming("run", 1, "n", 0.0, 6.0, 5.0), StageTiming("eval", 2, "n", 0, 9, 9)),
    receipt=None,
    total_s=1.0,
)


def test_shares_are_of_the_time_that_conversations_took() -> None:
    turns = Turns()
    turns.add(ROLLOUT)
    found = turns.report()
    assert (found["turns"], found["turns_per_rollout"], found["segments_per_rollout"]) == (2, 2, 1)
    assert (found["prefix_hit_rate"], found["tokens_per_turn"]) == (0.8, 20)
    assert (found["turn_p50_s"], found["turn_p99_s"]) == (1.5, 2.0)
    shares = [found[f"{part}_share"] for part in ("model", "queue", "transport", "tool")]
    assert shares == pytest.approx([2 / 5, 1 / 5, 0.0, 1 / 5])
    assert (found["tool_errors"], found["aborts"]) == (1, 2)


@pytest.mark.parametrize("data", [{}, {"run": {}}, {"run": None}, {"run": {"turns": [{"x": 1}]}}])
def test_rollouts_of_other_kinds_count_for_nothing(data: dict[str, Any]) -> None:
    turns = Turns()
    turns.add(replace(ROLLOUT, data=data))
    assert turns.report() == {}


def test_the_section_is_found_and_printed_with_the_summary() -> None:
    [point] = entry_points(group="rollmq.summaries")
    summary = Summary({point.name: point.load()()})
    summary.add(ROLLOUT)
    report = summary.report(1.0, "out")
    assert report["sections"]["conversations"]["turns"] == 2
    text = io.StringIO()
    print_summary(Console(file=text, width=100), {**report, "asked": 1})
    assert "prefix_hit_rate" in text.getvalue()
    assert "80.0%" in text.getvalue()
