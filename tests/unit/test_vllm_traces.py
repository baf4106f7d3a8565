"""The scheduler's rules against what a real vLLM did, request by request (tests/traces)."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.backends.simulator.blocks import block_names
from nodes.backends.simulator.schedule import Limits, Request, Scheduler

FILE = Path(__file__).parent.parent / "traces" / "vllm.json"
RECORDED = json.loads(FILE.read_text(encoding="utf-8"))
TRACES = RECORDED["traces"]


def limits() -> Limits:
    """vLLM keeps one block of its pool as a placeholder that holds nothing."""
    return Limits(
        RECORDED["blocks"] - 1,
        RECORDED["block_tokens"],
        RECORDED["step_tokens"],
        RECORDED["step_sequences"],
    )


def requests_of(trace: dict[str, Any]) -> list[Request[dict[str, Any]]]:
    spoken: dict[int, list[int]] = defaultdict(list)
    found = []
    for asked in trace["requests"]:
        prompt = spoken[asked["session"]] + asked["added"]
        spoken[asked["session"]] = prompt + asked["answer"]
        tokens = np.array(spoken[asked["session"]], dtype=np.int32)
        names = block_names(tokens, RECORDED["block_tokens"])
        ticket, length = str(len(found)), len(asked["answer"])
        found.append(Request(ticket, len(prompt), length, names, 0.0, asked))
    return found


def replay(
    trace: dict[str, Any], size: Limits
) -> tuple[Scheduler[Any], list[Request[Any]], dict[str, int]]:
    scheduler, requests, ended_in = Scheduler[Any](size), requests_of(trace), {}
    for number in range(trace["steps"]):
        for request in requests:
            if request.work["added_before_step"] == number:
                scheduler.add(request)
        step = scheduler.begin_step()
        assert step is not None
        ended_in |= {request.ticket: number for request in scheduler.end_step(step)}
    return scheduler, requests, ended_in


@pytest.mark.parametrize(
    "trace", TRACES, ids=lambda trace: f"{trace['schedule']}-{trace['sessions']}"
)
def test_a_replayed_trace_is_that_of_vllm(trace: dict[str, Any]) -> None:
    scheduler, requests, ended_in = replay(trace, limits())
    assert len(scheduler) == 0
    assert [each.cached_tokens for each in requests] == [
        each["cached_tokens"] for each in trace["requests"]
    ]
    assert [ended_in[each.ticket] for each in requests] == [
        each["ended_in_step"] for each in trace["requests"]
    ]
    counts = scheduler.counts
    assert (counts.preemptions, counts.prefix_queries, counts.prefix_hits) == (
        trace["preemptions"],
        trace["prefix_queries"],
        trace["prefix_hits"],
    )
    assert scheduler.pool.free == limits().blocks


def test_the_traces_hold_the_cliff() -> None:
    found = {(each["schedule"], each["sessions"]): each for each in TRACES}

    def hit_rate(schedule: str, sessions: int) -> float:
        trace = found[schedule, sessions]
        return float(trace["prefix_hits"] / trace["prefix_queries"])

    for schedule in ("turns", "waves", "closed"):
        assert hit_rate(schedule, 2) > 0.85
        assert hit_rate(schedule, 6) > 0.85
        assert hit_rate(schedule, 16) < 0.3
    assert found["closed", 16]["preemptions"] >= 10
    assert found["closed", 6]["preemptions"] == 0


def test_a_wrong_rule_would_not_go_unnoticed() -> None:
    trace = next(each for each in TRACES if (each["schedule"], each["sessions"]) == ("closed", 16))
    one_block_less = Limits(limits().blocks - 1, 32, 256, 64)
    scheduler, _, _ = replay(trace, one_block_less)
    assert scheduler.counts.prefix_hits != trace["prefix_hits"]
