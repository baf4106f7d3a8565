"""Traces of a real topology, taken by a real OTLP/HTTP receiver: one connected tree a rollout."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from engine import Client, Task
from nodes.tasks.calculator import calculator_tasks
from nodes.tracing.spans import root_id, stage_id, trace_id

from ..topology_kit import Site, running_topology

DEADLINE_S = READY_S = 240.0
TOPOLOGY = """\
version: 1
durability: process
timeouts: {{heartbeat_s: 0.3, cancel_grace_s: 2, drain_s: 2, retry_delay_s: 0.1}}
stages:
  - {{name: init, slots: 4}}
  - {{name: run, slots: 4, timeout_s: 240}}
  - {{name: eval, slots: 4}}
router: {{}}
backends: [{{name: sim, kind: simulator, options: {{speed: 50, demonstrations: {made}}}}}]
traces: {{endpoint: "{endpoint}"}}
"""
FLAKY = """\
import asyncio

from nodes.tasks import Output


async def init(context):
    if context.attempt == 1:
        raise ValueError("not at the first try")
    return Output()


async def run(context):
    await asyncio.sleep(context.task.payload["run_s"])
    return Output()


async def eval(context):
    return Output(reward=1.0)
"""
SETTINGS = {"turns": 8, "max_tokens": 256, "context_tokens": 4096, "temperature": 1.0}


class Receiver:
    """What an OpenTelemetry collector is to an exporter; keeps every span by trace."""

    def __init__(self) -> None:
        self.traces: defaultdict[int, dict[int, Any]] = defaultdict(dict)
        self.instances: set[str] = set()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for of_resource in request.resource_spans:
            about = {a.key: a.value.string_value for a in of_resource.resource.attributes}
            self.instances.add(about["service.instance.id"])
            for scope in of_resource.scope_spans:
                for span in scope.spans:
                    trace = self.traces[int.from_bytes(span.trace_id, "big")]
                    trace[int.from_bytes(span.span_id, "big")] = span

    def trace(self, rollout_id: str, *wanted: str) -> dict[int, Any]:
        """Return a rollout's spans once its root and spans of these names are there."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            spans = dict(self.traces[trace_id(rollout_id)])
            names = {span.name for span in spans.values()}
            if {"rollout", *wanted} <= names:
                return spans
            assert time.monotonic() < deadline, f"{rollout_id}: {names}"
            time.sleep(0.05)


@contextmanager
def receiving() -> Iterator[tuple[Receiver, str]]:
    """Serve OTLP/HTTP on loopback; yield the receiver and its endpoint."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            receiver.take(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver, f"http://127.0.0.1:{server.server_port}/v1/traces"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def expect_tree(spans: dict[int, Any], rollout_id: str) -> None:
    """Expect one root, and of every other span a parent that is there and holds its time."""
    roots = [span for span in spans.values() if not span.parent_span_id]
    assert [int.from_bytes(span.span_id, "big") for span in roots] == [root_id(rollout_id)]
    for span in spans.values():
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        if span.parent_span_id:
            parent = spans[int.from_bytes(span.parent_span_id, "big")]
            assert parent.start_time_unix_nano <= span.start_time_unix_nano, span.name


def attribute(span: Any, name: str) -> Any:
    value = next(each.value for each in span.attributes if each.key == name)
    return getattr(value, value.WhichOneof("value"))


def named(spans: dict[int, Any], name: str) -> list[Any]:
    found = [span for span in spans.values() if span.name == name]
    return sorted(found, key=lambda span: int(span.start_time_unix_nano))


def calculator() -> Task:
    made = next(calculator_tasks(1, 7, {**SETTINGS, "template": "", "renderer": ""}))
    return Task(**made)


def test_every_rollout_is_one_connected_tree(short_path: Path) -> None:
    with receiving() as (receiver, endpoint):
        text = TOPOLOGY.format(endpoint=endpoint, made="''")
        with running_topology(short_path, text, {"flaky": FLAKY}, READY_S) as site:
            ends_with_turns(site, receiver)
            ends_after_a_retry(site, receiver)
            is_cancelled(site, receiver)
        assert {"broker", "run-0"} <= receiver.instances


def ends_with_turns(site: Site, receiver: Receiver) -> None:
    with Client(site.topology.path) as client:
        names = client.submit(calculator(), 2)
        rollouts = list(client.rollouts())
    called = 0
    for rollout in rollouts:
        spans = receiver.trace(rollout.rollout_id, "submit", "turn", "stage eval")
        expect_tree(spans, rollout.rollout_id)
        assert [len(named(spans, f"queue {name}")) for name in ("init", "run", "eval")] == [1] * 3
        (stage,) = named(spans, "stage run")
        for turn in named(spans, "turn"):
            assert turn.parent_span_id == stage.span_id
            assert attribute(turn, "rollmq.tokens") > 0
        assert len(named(spans, "turn")) == len(rollout.data["run"]["turns"])
        tools = sum(len(turn.get("tools", ())) for turn in rollout.data["run"]["turns"])
        assert len(named(spans, "tool")) == tools
        called += tools
        (root,) = named(spans, "rollout")
        assert attribute(root, "rollmq.outcome") == rollout.outcome
    assert called > 0
    assert {rollout.rollout_id for rollout in rollouts} == set(names)


def ends_after_a_retry(site: Site, receiver: Receiver) -> None:
    with Client(site.topology.path) as client:
        (name,) = client.submit(Task("retried", "kinds.flaky", {"run_s": 0.0}))
        assert [rollout.outcome for rollout in client.rollouts()] == ["completed"]
    spans = receiver.trace(name, "stage eval")
    expect_tree(spans, name)
    first, second = named(spans, "stage init")
    assert int.from_bytes(first.span_id, "big") == stage_id(name, "init", 1)
    assert int.from_bytes(second.span_id, "big") == stage_id(name, "init", 2)
    assert attribute(first, "rollmq.status") == "failed"
    assert "not at the first try" in first.status.message
    assert attribute(second, "rollmq.status") == "done"
    assert len(named(spans, "queue init")) == 2


def is_cancelled(site: Site, receiver: Receiver) -> None:
    with Client(site.topology.path) as client:
        (name,) = client.submit(Task("cancelled", "kinds.flaky", {"run_s": 3600.0}))
        site.until(lambda: client.status()["stages"][1]["leased"] == 1, DEADLINE_S)
        client.cancel([name])
        assert [rollout.outcome for rollout in client.rollouts()] == ["cancelled"]
    spans = receiver.trace(name, "stage run")
    expect_tree(spans, name)
    (stage,) = named(spans, "stage run")
    assert attribute(stage, "rollmq.status") == "cancelled"
    (root,) = named(spans, "rollout")
    assert attribute(root, "rollmq.outcome") == "cancelled"


def test_a_collector_that_is_away_holds_nothing_up(short_path: Path) -> None:
    with receiving() as (_, endpoint):
        pass  # nobody listens there any more
    text = TOPOLOGY.format(endpoint=endpoint, made="''")
    running = running_topology(short_path, text, {"flaky": FLAKY}, READY_S)
    with running as site, Client(site.topology.path) as client:
        client.submit(Task("t", "kinds.flaky", {"run_s": 0.0}), 20)
        assert [rollout.outcome for rollout in client.rollouts()] == ["completed"] * 20
