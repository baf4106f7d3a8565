"""Spans to an OpenTelemetry collector, over OTLP/HTTP, by the SDK's own thread.

Job: hand spans to the SDK with the ids that they have.
Does not know: what they are about.
Invariants: handing over never waits: the queue is bounded, and what it cannot hold is dropped and
logged. At the end the last spans have `LAST_S` seconds. Any thread may hand over.
"""

from importlib.util import find_spec
from threading import Lock, Thread
from typing import Any

from engine.errors import NodeFailed
from engine.topology import Topology

from .spans import Span, trace_id

QUEUE, BATCH = 32_768, 512  # spans
EVERY_MS = 500
SEND_S = 5.0
LAST_S = 3.0


class Exporter:
    """Sends spans to a collector."""

    def __init__(self, endpoint: str, service: str, about: dict[str, str]) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - an optional dependency
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415

        self._api: Any = trace
        self._ids = _Ids()
        self._lock = Lock()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource({"service.name": service, **about}),
            shutdown_on_exit=False,
            id_generator=self._ids,  # type: ignore[arg-type]
        )
        sender = OTLPSpanExporter(endpoint=endpoint, timeout=SEND_S)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                sender,
                max_queue_size=QUEUE,
                schedule_delay_millis=EVERY_MS,
                max_export_batch_size=BATCH,
            )
        )
        self._tracer = self._provider.get_tracer("rollmq")

    def emit(self, spans: list[Span]) -> None:
        """Queue spans, and return at once."""
        with self._lock:  # ids are set for one span at a time; handlers may be in threads
            for span in spans:
                self._queue(span)

    def close(self) -> None:
        """Send what is queued, for `LAST_S` at most."""
        last = Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(LAST_S)

    def _queue(self, span: Span) -> None:
        api = self._api
        self._ids.trace_id, self._ids.span_id = trace_id(span.rollout_id), span.span_id
        above = api.set_span_in_context(api.INVALID_SPAN)
        if span.parent_id:
            flags = api.TraceFlags(api.TraceFlags.SAMPLED)
            parent = api.SpanContext(
                self._ids.trace_id, span.parent_id, is_remote=True, trace_flags=flags
            )
            above = api.set_span_in_context(api.NonRecordingSpan(parent))
        made = self._tracer.start_span(
            span.name, context=above, attributes=span.attributes, start_time=span.began_ns
        )
        if span.error:
            made.set_status(api.Status(api.StatusCode.ERROR, span.error))
        made.end(span.ended_ns)


class _Ids:
    """The SDK's generator of ids, which here are those of the span at hand."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        """Return the trace's id."""
        return self.trace_id

    def generate_span_id(self) -> int:
        """Return the span's id."""
        return self.span_id

    def is_trace_id_random(self) -> bool:
        """Say that it is a hash."""
        return False


def open_exporter(topology: Topology, node: str) -> Exporter | None:
    """Return where a node's spans go; None if nothing is traced.

    Raises: NodeFailed if the extra that it needs is not installed.
    """
    if topology.traces is None:
        return None
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise NodeFailed("`traces` needs the extra rollmq[traces]: pip install 'rollmq[traces]'")
    about = {"service.instance.id": node, "host.name": topology.node(node).host}
    return Exporter(topology.traces.endpoint, "rollmq", {**about, "rollmq.topology": topology.name})
