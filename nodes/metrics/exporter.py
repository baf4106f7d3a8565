"""A collector for prometheus_client: each scrape asks the broker once.

Job: turn a status into metric families.
Does not know: which metrics there are (catalogue), or HTTP.
Invariants: a broker that does not answer in time is `rollmq_up 0` and nothing else; a scrape is
never answered with figures of another time.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from engine.errors import ClientError

from .catalogue import METRICS, UP, Metric
from .readings import Buckets

SCRAPE_S = 3.0  # well under the 10 seconds that Prometheus waits


class StatusCollector(Collector):
    """Collects from what `look` returns, given a deadline in seconds."""

    def __init__(self, look: Callable[[float], dict[str, Any]]) -> None:
        self._look = look
        self.counts = {"scrapes": 0.0, "unanswered": 0.0}

    def describe(self) -> Iterator[Family]:
        """Yield every family without samples, so that registering asks nobody."""
        yield from map(_family, METRICS)

    def collect(self) -> Iterator[Family]:
        """Yield every family with its samples of now."""
        self.counts["scrapes"] += 1
        try:
            status = self._look(SCRAPE_S)
        except ClientError:
            self.counts["unanswered"] += 1
            yield _filled(UP, {"up": 0.0})
            return
        status["up"] = 1.0
        for metric in METRICS:
            yield _filled(metric, status)


def _family(metric: Metric) -> Any:
    match metric.kind:
        case "gauge":
            return GaugeMetricFamily(metric.name, metric.doc, labels=metric.labels)
        case "counter":
            name = metric.name.removesuffix("_total")
            return CounterMetricFamily(name, metric.doc, labels=metric.labels)
        case "histogram":
            return HistogramMetricFamily(metric.name, metric.doc, labels=metric.labels)


def _filled(metric: Metric, status: dict[str, Any]) -> Any:
    family = _family(metric)
    for labels, value in metric.read(status):
        if isinstance(value, Buckets):
            ends = [*(f"{bound:g}" for bound in status["bounds_s"]), "+Inf"]
            buckets = list(zip(ends, accumulate(value.counts), strict=True))
            family.add_metric(labels, buckets, value.sum_s)
        else:
            family.add_metric(labels, value)
    return family
