"""The oracle of samplings finds what it is there to find."""

from typing import Any

import pytest

from .sampling_oracle import Asked, judge

Line = dict[str, Any]
ASKED = Asked(groups=1, group_size=2, prompts=3, pattern="iiu")


def batch(number: int, prompt: int, **changes: Any) -> Line:
    group = [
        {
            "rollout_id": f"chaos-{prompt}-{member}",
            "task_id": f"i-{prompt}",
            "seq": 10 * prompt + member,
            "outcome": "completed",
            "reward": float(member),
            "trainable": True,
        }
        for member in range(2)
    ]
    tally = {"groups": 1}
    none = {"groups": 0}
    report = {"kept": tally, "dropped": none, "failed": none, "stale": none, "cancelled": none}
    line = {"event": "batch", "number": number, "reason": "complete", "groups": [group]}
    return {**line, "report": report, **changes}


def last(number: int, prompt: int) -> Line:
    line = batch(number, prompt)
    line["report"]["dropped"] = {"groups": 1}
    return line


def test_it_accepts_a_sampling_whose_batch_came_again() -> None:
    verdict = judge([[batch(0, 0)], [batch(0, 0), last(1, 1)]], ASKED, whole=True)
    assert not verdict.problems
    assert verdict.again == 1


@pytest.mark.parametrize(
    ("lives", "problem"),
    [
        ([[batch(0, 0)], [batch(0, 1), last(1, 0)]], "another one the second time"),
        ([[batch(0, 0), last(2, 1)]], "came where 1 was due"),
        ([[batch(0, 0)], [last(2, 1)]], "a life begins with batch 2"),
        ([[batch(0, 0), last(1, 0)]], "rollout_id in more than one place"),
        ([[batch(0, 0)]], "1 groups were kept of 2"),
        ([[batch(0, 0), batch(1, 1)]], "0 groups dropped, not 1"),
        ([[batch(0, 0, groups=[]), last(1, 1)]], "batch 0 has 0 groups"),
        ([[batch(0, 0, reason="cancelled"), last(1, 1)]], "reason cancelled"),
    ],
)
def test_it_finds_what_is_wrong(lives: list[list[Line]], problem: str) -> None:
    assert problem in str(judge(lives, ASKED, whole=True))


def test_it_finds_a_group_that_teaches_nothing() -> None:
    line = batch(0, 0)
    line["groups"][0][0]["reward"] = 1.0
    assert "batch 0 has {1.0}" in str(judge([[line]], ASKED))


def test_it_finds_a_broken_group() -> None:
    line = batch(0, 0)
    del line["groups"][0][0]
    assert "broken group" in str(judge([[line]], ASKED))
