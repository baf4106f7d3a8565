"""The keys of topology.yaml's sections `metrics` and `traces`.

Job: their names, shapes, bounds, defaults and meaning.
Does not know: YAML, files, or the other sections.
Invariants: their names are those of `MetricsSpec` and `TracesSpec`.
"""

from .shapes import REQUIRED, Field, Integer, Section, Share, Text

_ADDRESS = Text(r"[A-Za-z0-9._:-]{1,253}", "an IP address or a host name")

METRICS = Section(
    "metrics",
    "Figures for Prometheus, by a process on the broker's host; see "
    "[observability.md](observability.md). Without the section there is none.",
    (
        Field(
            "port",
            Integer(1024, 65_535),
            "The port of `GET /metrics`.",
            9464,
            "The port that exporters of OpenTelemetry use for Prometheus.",
        ),
        Field(
            "bind",
            _ADDRESS,
            "The address that it listens on; there is no password.",
            "127.0.0.1",
            "Figures name clients and rollouts' stages: nobody else's business unless you say so.",
        ),
    ),
)

TRACES = Section(
    "traces",
    "Spans of every rollout for OpenTelemetry; see [observability.md](observability.md). Needs the "
    "extra `rollmq[traces]`. Without the section nothing is traced.",
    (
        Field(
            "endpoint",
            Text(r"https?://[^\s]{1,500}", "an http or https URL"),
            "The collector's OTLP/HTTP address for traces, such as http://localhost:4318/v1/traces.",
            REQUIRED,
        ),
        Field(
            "sample",
            Share(),
            "The share of rollouts that are traced, by a hash of their id.",
            1.0,
            "A rollout takes seconds, its spans a few kilobytes.",
        ),
    ),
)
