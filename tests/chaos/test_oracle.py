import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import oracle

Line = dict[str, Any]


def sent(*names: str) -> list[Line]:
    return [{"event": event, "ids": list(names)} for event in ("submitted", "accepted")]


def got(name: str, seq: int, outcome: str = "completed", reward: float | None = 1.0) -> Line:
    trainable = reward is not None
    found = {"rollout_id": name, "seq": seq, "outcome": outcome, "reward": reward}
    return {"event": "received", **found, "trainable": trainable}


def problems(*lives: list[Line]) -> list[str]:
    found = oracle.Oracle()
    for life in lives:
        found.life(life)
    return found.verdict().problems


def test_a_run_in_which_everything_ends_once_is_clean() -> None:
    assert problems([*sent("a", "b"), got("a", 1), got("b", 2, "failed", None)]) == []


def test_a_lost_rollout_is_caught() -> None:
    assert problems([*sent("a", "b"), got("a", 1)]) == ["b was accepted and never ended"]


def test_a_rollout_given_twice_in_one_life_is_caught() -> None:
    (doubled,) = problems([*sent("a"), got("a", 1), got("a", 1)])
    assert doubled == "a was given twice to one life of the trainer"


def test_a_rollout_that_ends_twice_is_caught_across_lives() -> None:
    (doubled,) = problems([*sent("a"), got("a", 1)], [*sent("a"), got("a", 2)])
    assert doubled.startswith("a ended as (1, 'completed', 1.0) and as (2,")


def test_a_repeat_of_the_same_result_in_a_new_life_is_allowed() -> None:
    assert problems([*sent("a"), got("a", 1)], [*sent("a"), got("a", 1)]) == []


def test_an_unexpected_rollout_is_caught() -> None:
    assert problems([*sent("a"), got("a", 1), got("b", 2)]) == [
        "b was received and never submitted"
    ]


def test_a_number_of_two_rollouts_is_caught() -> None:
    assert problems([*sent("a", "b"), got("a", 1), got("b", 1)]) == ["number 1 is of a and of b"]


def test_a_reward_on_a_failure_is_caught() -> None:
    (wrong,) = problems([*sent("a"), got("a", 1, "failed", 0.0)])
    assert "is failed and has reward 0.0" in wrong


def test_a_completed_rollout_without_a_reward_is_caught() -> None:
    assert problems([*sent("a"), got("a", 1, "completed", None)]) == [
        "a is completed and has no reward"
    ]


def test_repeats_on_the_wire_are_counted_and_no_problem() -> None:
    found = oracle.Oracle()
    found.life([*sent("a"), {"event": "wire", "seq": 1}, {"event": "wire", "seq": 1}, got("a", 1)])
    verdict = found.verdict()
    assert verdict.problems == []
    assert verdict.counts["repeats on the wire"] == 1


def test_the_command_takes_logs_cut_short_and_says_what_is_lost(tmp_path: Path) -> None:
    log = tmp_path / "life.jsonl"
    log.write_text("".join(f"{json.dumps(line)}\n" for line in sent("a")) + '{"event": "rec')
    done = subprocess.run(
        [sys.executable, oracle.__file__, log], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "a was accepted and never ended" in done.stdout
