"""The exporter's catalogue against a status, and what is made from it against the files."""

import re
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from engine.errors import BrokerUnreachable
from engine.figures import BOUNDS_S, Histogram
from nodes.metrics import page
from nodes.metrics.catalogue import METRICS
from nodes.metrics.dashboard import ROWS
from nodes.metrics.exporter import StatusCollector

from ..ledger_kit import Driver

NAMES = {metric.name for metric in METRICS}
SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "gauge": ("",), "counter": ("",)}


def status() -> dict[str, Any]:
    driver = Driver()
    driver.client()
    driver.worker("w", "init")
    driver.submit("a", "b", "c")
    driver.now += 0.02
    driver.result("w", "a", 1)
    found: Any = driver.ledger.status(driver.now)
    dispatch = Histogram()
    dispatch.add(0.004)
    figures = {"sessions": 2.0, "running": 1.0, "waiting": 0.0, "asked": 7.0, "policy_version": 3}
    part = {"running": 1.0, "tokens": 99.0, "hit_rate": 0.5, "stalled_s": 0.0}
    keeper = {"started": 4.0, "held_now": 1.0, "pinned_now": 0.0, "warm_now": 2.0, "failed": 1.0}
    router = {"node": "router", "role": "router", "host": "a", "heard_s": 0.5, "figures": figures}
    router["parts"] = [{"name": "sim-0", "state": "open", "figures": part}]
    sandboxes = {"node": "sandboxes-0", "role": "sandboxes", "host": "a", "heard_s": 0.5}
    return {
        **found,
        "bounds_s": BOUNDS_S,
        "dispatch_wait": dispatch.report(),
        "commit": Histogram().report(),
        "journal": {"full": 0.0, "queued": 2.0},
        "loop": {"lag_s": 0.01, "refused_on_front": 3},
        "process": {"rss_bytes": 1 << 20, "cpu_s": 1.5, "body_bytes": 10},
        "disk_free_bytes": 1 << 30,
        "nodes": [router, {**sandboxes, "figures": keeper, "parts": []}],
    }


def scraped(collector: StatusCollector) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    registry = CollectorRegistry()
    registry.register(collector)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    samples = [sample for family in families for sample in family.samples]
    return {(each.name, tuple(sorted(each.labels.items()))): each.value for each in samples}


def test_a_scrape_has_every_metric_of_the_catalogue() -> None:
    found = {name for name, _ in scraped(StatusCollector(lambda _: status()))}
    optional = {"rollmq_backend_cache_use_ratio", "rollmq_backend_policy_version"}
    optional |= {"rollmq_backend_waiting", "rollmq_backend_sessions"}
    for metric in METRICS:
        wanted = {metric.name + suffix for suffix in SUFFIXES[metric.kind]}
        assert wanted <= found or metric.name in optional, metric.name


def test_figures_are_those_of_the_status() -> None:
    found = scraped(StatusCollector(lambda _: status()))
    assert found["rollmq_up", ()] == 1.0
    assert found["rollmq_stage_rollouts", (("stage", "init"), ("state", "leased"))] == 2.0
    assert found["rollmq_stage_done_total", (("stage", "init"),)] == 1.0
    assert found["rollmq_held", (("bound", "rollouts"),)] == 3.0
    assert found["rollmq_messages_refused_total", (("socket", "front"),)] == 3.0
    assert found["rollmq_backend_tokens_total", (("backend", "sim-0"),)] == 99.0
    assert found["rollmq_sandboxes", (("host", "a"), ("state", "warm"))] == 2.0


def test_buckets_add_up_to_their_count() -> None:
    found = scraped(StatusCollector(lambda _: status()))
    stage = ("stage", "init")
    assert found["rollmq_stage_duration_seconds_count", (stage,)] == 1.0
    assert found["rollmq_stage_duration_seconds_bucket", (("le", "0.01"), stage)] == 0.0
    assert found["rollmq_stage_duration_seconds_bucket", (("le", "0.025"), stage)] == 1.0
    assert found["rollmq_stage_duration_seconds_bucket", (("le", "+Inf"), stage)] == 1.0
    assert found["rollmq_stage_duration_seconds_sum", (stage,)] == pytest.approx(0.02)


def test_a_broker_that_does_not_answer_is_one_figure() -> None:
    def silent(_: float) -> dict[str, Any]:
        raise BrokerUnreachable("waited")

    collector = StatusCollector(silent)
    assert scraped(collector) == {("rollmq_up", ()): 0.0}
    assert collector.counts["unanswered"] == 1.0


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_rules(metric: Any) -> None:
    assert re.fullmatch(r"rollmq(_[a-z]+)+", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert metric.kind != "histogram" or metric.name.endswith("_seconds")
    assert "rollout_id" not in metric.labels


def test_no_two_metrics_have_one_name() -> None:
    assert len(NAMES) == len(METRICS)


def test_the_table_of_the_page_is_current() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.with_table(text) == text, "run python -m nodes.metrics.page"


def test_the_dashboard_is_current() -> None:
    kept = page.DASHBOARD.read_text(encoding="utf-8")
    assert kept == page.dashboard_text(), "run python -m nodes.metrics.page"


def test_every_expression_of_the_dashboard_is_about_exported_metrics() -> None:
    exported = {m.name + suffix for m in METRICS for suffix in SUFFIXES[m.kind]}
    expressions = [line[0] for _, panels in ROWS for panel in panels for line in panel.lines]
    named = [re.findall(r"rollmq_\w+", expression) for expression in expressions]
    assert all(named)
    assert {name for names in named for name in names} <= exported
