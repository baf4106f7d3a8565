"""Spans from the ledger's instructions: ids that agree, one tree a rollout, bounded."""

import pytest

from engine.ledger import Event, Instruction
from nodes.tracing.attempts import CURRENT, AttemptSpans, span
from nodes.tracing.rollouts import RolloutSpans
from nodes.tracing.spans import Span, is_traced, part_id, root_id, stage_id, trace_id

from ..ledger_kit import RULES, Driver

STAGES = [rule.name for rule in RULES.stages]


class Traced(Driver):
    """A driver whose instructions are followed."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.ended: dict[str, list[Span]] = {}
        self.spans = RolloutSpans(STAGES, share, self._emit)
        self.position = 0

    def _emit(self, spans: list[Span]) -> None:
        assert spans[0].rollout_id not in self.ended
        self.ended[spans[0].rollout_id] = spans

    def handle(self, event: Event) -> list[Instruction]:
        instructions = super().handle(event)
        now_ns = int(self.now * 1e9)
        self.position += 1
        self.spans.take(instructions, now_ns)
        self.spans.accepted(self.position)
        self.spans.durable(self.position, now_ns)
        return instructions


def expect_tree(spans: list[Span]) -> None:
    root = spans[0]
    assert (root.name, root.parent_id, root.span_id) == ("rollout", 0, root_id(root.rollout_id))
    assert len({each.span_id for each in spans}) == len(spans)
    for each in spans[1:]:
        assert each.parent_id == root.span_id
        assert root.began_ns <= each.began_ns <= each.ended_ns <= root.ended_ns


def titles(spans: list[Span]) -> list[tuple[str, object]]:
    return [(each.name, each.attributes.get("rollmq.status")) for each in spans[1:]]


def test_a_rollout_that_completes_is_one_tree() -> None:
    driver = Traced()
    driver.client()
    driver.submit("r")
    driver.now += 1.0
    driver.finish("r")
    spans = driver.ended["r"]
    expect_tree(spans)
    done = [(f"{kind} {name}", "done" if kind == "stage" else None)
            for name in STAGES for kind in ("queue", "stage")]  # fmt: skip
    assert titles(spans) == [("submit", None), *done]
    assert spans[0].attributes["rollmq.outcome"] == "completed"
    assert spans[0].attributes["rollmq.client_id"] == "trainer"
    assert spans[2].ended_ns - spans[2].began_ns == 1_000_000_000


def test_an_attempt_that_failed_and_the_one_after_it_are_spans_of_their_own() -> None:
    driver = Traced()
    driver.client()
    driver.submit("r")
    driver.worker("w", "init", slots=1)
    driver.result("w", "r", 1, "failed")
    driver.tick(RULES.retry_delay_s)
    driver.result("w", "r", 2, final=True)
    spans = driver.ended["r"]
    expect_tree(spans)
    stages = [each for each in spans if each.name == "stage init"]
    assert [each.attributes["rollmq.status"] for each in stages] == ["failed", "done"]
    assert [each.span_id for each in stages] == [stage_id("r", "init", n) for n in (1, 2)]
    assert "no space" in stages[0].error
    assert not stages[1].error


def test_a_cancelled_rollout_ends_its_attempt_and_its_root() -> None:
    driver = Traced()
    driver.client()
    driver.submit("r", "never")
    driver.worker("w", "init", slots=1)
    driver.cancel("r", "never")
    driver.result("w", "r", 1, "cancelled")
    expect_tree(driver.ended["r"])
    assert titles(driver.ended["r"])[-1] == ("stage init", "cancelled")
    assert titles(driver.ended["never"]) == [("submit", None)]
    assert {spans[0].attributes["rollmq.outcome"] for spans in driver.ended.values()} == {
        "cancelled"
    }


def test_a_worker_that_is_lost_leaves_an_interrupted_attempt() -> None:
    driver = Traced()
    driver.client()
    driver.submit("r")
    driver.worker("w", "init", slots=1)
    driver.lost("w")
    driver.finish("r")
    assert ("stage init", "interrupted") in titles(driver.ended["r"])
    expect_tree(driver.ended["r"])


def test_what_was_accepted_before_the_broker_s_start_has_its_root() -> None:
    driver = Traced()
    driver.client()
    driver.submit("r")
    driver.spans = RolloutSpans(STAGES, 1.0, driver._emit)
    driver.now += 5.0
    driver.finish("r")
    spans = driver.ended["r"]
    assert [each.name for each in spans] == ["rollout"]
    assert spans[0].ended_ns - spans[0].began_ns == pytest.approx(5e9)


def test_the_same_share_of_rollouts_is_traced_everywhere() -> None:
    names = [f"r-{number}" for number in range(4000)]
    chosen = [name for name in names if is_traced(name, 0.25)]
    assert 800 < len(chosen) < 1200
    assert all(is_traced(name, 0.5) for name in chosen)
    assert not any(is_traced(name, 0.0) for name in names)
    assert all(is_traced(name, 1.0) for name in names)


def test_what_is_not_sampled_is_neither_followed_nor_given() -> None:
    driver = Traced(share=0.0)
    driver.client()
    driver.submit("r")
    driver.finish("r")
    assert driver.ended == {}


def test_ids_are_of_their_size_and_never_alike() -> None:
    ids = [root_id("r"), stage_id("r", "run", 1), stage_id("r", "run", 2), part_id("r", "run", 1)]
    assert len(set(ids)) == 4
    assert all(0 < each < 1 << 64 for each in ids)
    assert 0 < trace_id("r") < 1 << 128
    assert trace_id("r") != trace_id("s")


def test_a_handler_s_spans_are_children_of_its_attempt() -> None:
    given: list[Span] = []
    token = CURRENT.set(AttemptSpans("r", "run", 2, given.extend))
    try:
        with span("turn") as notes:
            notes["rollmq.tokens"] = 7
        with pytest.raises(ValueError, match="no such file"), span("tool"):
            raise ValueError("no such file")
    finally:
        CURRENT.reset(token)
    assert [each.name for each in given] == ["turn", "tool"]
    assert {each.parent_id for each in given} == {stage_id("r", "run", 2)}
    assert given[0].attributes["rollmq.tokens"] == 7
    assert given[1].error == "ValueError: no such file"
    assert given[0].span_id != given[1].span_id


def test_where_nobody_traces_nothing_is_given() -> None:
    with span("turn") as notes:
        notes["rollmq.tokens"] = 7
    assert CURRENT.get() is None


def test_a_result_of_an_older_attempt_supersedes_the_one_under_way() -> None:
    driver = Traced()
    driver.client()
    driver.submit("r")
    driver.worker("w", "init", slots=1)
    driver.tick(RULES.lease_s + 1.0)
    driver.worker("v", "init", slots=1)
    held = driver.attempts("v")
    assert held == [("r", 2)]
    driver.result("w", "r", 1, final=True)
    assert ("stage init", "superseded") in titles(driver.ended["r"])
    expect_tree(driver.ended["r"])
