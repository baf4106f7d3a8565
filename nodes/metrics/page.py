"""The table of metrics in docs/observability.md, and grafana/rollmq.json.

Job: `python -m nodes.metrics.page` rewrites both; tests prove that they are current.
"""

import json
from pathlib import Path

from .catalogue import SECTIONS, Metric
from .dashboard import dashboard

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "observability.md"
DASHBOARD = ROOT / "grafana" / "rollmq.json"
BEGIN, END = "<!-- metrics -->", "<!-- end: metrics -->"


def with_table(page: str) -> str:
    """Return a page whose table of metrics, between its markers, is current.

    Raises: ValueError if the markers are not there once each.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page needs {BEGIN} and {END}, once each")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{_tables()}\n\n{END}{rest.split(END)[1]}"


def dashboard_text() -> str:
    """Return the dashboard as it is kept in the file."""
    return json.dumps(dashboard(), indent=2) + "\n"


def _tables() -> str:
    head = "| metric | kind | labels | meaning |\n| --- | --- | --- | --- |"
    tables = [
        f"**{title}**\n\n{head}\n" + "\n".join(map(_row, metrics)) for title, metrics in SECTIONS
    ]
    return "\n\n".join(tables)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.doc} |"


def main() -> None:
    """Rewrite both."""
    DASHBOARD.write_text(dashboard_text(), encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
