"""The Grafana dashboard, as data.

Job: panels with their expressions, and the JSON that Grafana imports.
Does not know: files.
Invariants: every expression is about metrics of the catalogue; a test sees to it.
"""

from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT, ACROSS = 8, 7, 3
SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: `lines` are (expression, legend); `unit` is Grafana's name of it."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]


def _quantiles(name: str, by: str = "") -> tuple[tuple[str, str], ...]:
    labels, legend = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    return tuple(
        (
            f"histogram_quantile({share}, sum by ({labels}) (rate({name}_bucket[5m])))",
            f"{legend}p{share * 100:g}",
        )
        for share in (0.5, 0.99)
    )


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Rollouts",
        (
            Panel(
                "Ended",
                "ops",
                (("sum by (outcome) (rate(rollmq_rollouts_ended_total[1m]))", "{{outcome}}"),),
            ),
            Panel(
                "Bounds",
                "percentunit",
                (("rollmq_held / rollmq_held_limit", "{{bound}}"),),
            ),
            Panel(
                "Attempts that failed or were lost",
                "ops",
                (
                    ("rate(rollmq_stage_failed_total[5m])", "failed in {{stage}}"),
                    ("rate(rollmq_attempts_total[5m])", "{{event}}"),
                ),
            ),
        ),
    ),
    (
        "Stages",
        (
            Panel("Waiting", "short", (('rollmq_stage_rollouts{state="ready"}', "{{stage}}"),)),
            Panel(
                "Slots in use",
                "percentunit",
                (("1 - rollmq_stage_slots_free / rollmq_stage_slots", "{{stage}}"),),
            ),
            Panel("Results", "ops", (("rate(rollmq_stage_done_total[1m])", "{{stage}}"),)),
            Panel("Duration", "s", _quantiles("rollmq_stage_duration_seconds", "stage")),
            Panel("Queue wait", "s", _quantiles("rollmq_stage_queue_wait_seconds", "stage")),
            Panel("Oldest", "s", (("rollmq_stage_oldest_seconds", "{{stage}}"),)),
        ),
    ),
    (
        "Broker and nodes",
        (
            Panel(
                "Disk",
                "s",
                (
                    *((e, f"commit {name}") for e, name in _quantiles("rollmq_commit_seconds")),
                    *(
                        (e, f"dispatch {name}")
                        for e, name in _quantiles("rollmq_dispatch_wait_seconds")
                    ),
                ),
            ),
            Panel(
                "Event-loop lag",
                "s",
                (
                    ("rollmq_broker_loop_lag_seconds", "broker"),
                    ("rollmq_node_loop_lag_seconds", "{{node}}"),
                ),
            ),
            Panel("Not heard for", "s", (("rollmq_node_heard_seconds", "{{node}}"),)),
            Panel(
                "Unacknowledged results",
                "short",
                (("sum by (client_id) (rollmq_client_results)", "{{client_id}}"),),
            ),
            Panel(
                "Sandboxes",
                "short",
                (
                    ("rollmq_sandboxes", "{{host}} {{state}}"),
                    ('increase(rollmq_sandboxes_total{event="failed"}[5m])', "{{host}} failed"),
                ),
            ),
            Panel(
                "Broker's memory",
                "bytes",
                (
                    ("rollmq_broker_resident_bytes", "resident"),
                    ("rollmq_broker_body_bytes", "bodies"),
                ),
            ),
        ),
    ),
    (
        "Inference",
        (
            Panel("Tokens", "ops", (("rate(rollmq_backend_tokens_total[1m])", "{{backend}}"),)),
            Panel(
                "Requests",
                "short",
                (
                    ("rollmq_backend_running", "{{backend}} running"),
                    ("rollmq_router_waiting", "waiting"),
                ),
            ),
            Panel(
                "Prefix cache hits",
                "percentunit",
                (("rollmq_backend_cache_hit_ratio", "{{backend}}"),),
            ),
            Panel("Stalled", "s", (("rollmq_backend_stalled_seconds", "{{backend}}"),)),
            Panel(
                "Policy version",
                "short",
                (("rollmq_backend_policy_version", "{{backend}}"),),
            ),
            Panel(
                "Router",
                "ops",
                (("rate(rollmq_router_requests_total[1m])", "{{event}}"),),
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it (schema 39); it asks for its data source."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, drawn in ROWS:
        place = {"h": 1, "w": 24, "x": 0, "y": top}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place})
        for number, panel in enumerate(drawn):
            x, y = WIDTH * (number % ACROSS), top + 1 + HEIGHT * (number // ACROSS)
            panels.append(_panel(len(panels) + 1, panel, x, y))
        top += 1 + HEIGHT * -(-len(drawn) // ACROSS)
    source = {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "title": "rollmq",
        "uid": "rollmq",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend}
        for place, (expression, legend) in enumerate(panel.lines)
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [{**target, "datasource": SOURCE} for target in targets],
    }
