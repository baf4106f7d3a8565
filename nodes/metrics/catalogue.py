"""Every metric: its name, kind, labels, meaning, and where it is in a broker's status.

Job: one table from which the exporter, docs/observability.md and the dashboard's test are made.
Does not know: HTTP, sockets.
Invariants: names begin with `rollmq_` and end with their unit; counters end with `_total`; labels
are names of the topology, states, or clients, never rollouts, so that series stay few.
"""

from dataclasses import dataclass
from typing import Literal

from engine.records import OUTCOMES

from .readings import (
    Read,
    counts,
    each_bound,
    heard,
    histogram,
    loop_lags,
    node,
    node_states,
    one,
    opened,
    part,
    rows,
    states,
)

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; `read` yields its samples from a status."""

    name: str
    kind: Kind
    doc: str
    read: Read
    labels: tuple[str, ...] = ()


STAGE, BACKEND, HOST = ("stage",), ("backend",), ("host",)
NODE = ("node", "role", "host")
WORKER = ("node", "host", "stage")
LIVE = ("ready", "leased", "delayed", "stopping")
RESULTS = ("delivered", "held", "pending")
REFUSED = ("front", "control", "results")
ROUTED = ("asked", "delivered", "failed", "dropped", "retried", "late", "lost", "held_back")
SANDBOX_EVENTS = ("started", "warm", "ended", "reaped", "failed")

BROKER: tuple[Metric, ...] = (
    Metric(
        "rollmq_held",
        "gauge",
        "What the broker holds of each of its bounds.",
        each_bound(0),
        ("bound",),
    ),
    Metric("rollmq_held_limit", "gauge", "Each bound, as limits say.", each_bound(1), ("bound",)),
    Metric(
        "rollmq_rollouts_ended_total",
        "counter",
        "Rollouts that have ended.",
        counts("counts", *OUTCOMES),
        ("outcome",),
    ),
    Metric(
        "rollmq_attempts_total",
        "counter",
        "What became of attempts that did not end with a result: expired (nobody renewed the "
        "lease), released (interrupted without blame), undelivered (lost on the way to a worker), "
        "adopted (after a restart), late.",
        counts("counts", "expired", "released", "undelivered", "adopted", "late"),
        ("event",),
    ),
    Metric(
        "rollmq_messages_refused_total",
        "counter",
        "Messages that the broker could not read.",
        counts("loop", *REFUSED, prefix="refused_on_"),
        ("socket",),
    ),
    Metric(
        "rollmq_messages_denied_total",
        "counter",
        "Messages that their sender's key may not say.",
        counts("loop", *REFUSED, prefix="denied_on_"),
        ("socket",),
    ),
    Metric(
        "rollmq_dispatch_wait_seconds",
        "histogram",
        "From a dispatch's decision to its sending: the disk's part.",
        histogram("dispatch_wait"),
    ),
    Metric(
        "rollmq_commit_seconds",
        "histogram",
        "What each commit of the journal took.",
        histogram("commit"),
    ),
    Metric("rollmq_journal_full", "gauge", "1 while the disk is full.", one("journal", "full")),
    Metric(
        "rollmq_journal_queued_changes",
        "gauge",
        "Changes that are not durable yet.",
        one("journal", "queued"),
    ),
    Metric("rollmq_disk_free_bytes", "gauge", "Free where run_dir is.", one("disk_free_bytes")),
    Metric(
        "rollmq_broker_loop_lag_seconds",
        "gauge",
        "The longest turn of the broker's loop, of the last 10 to 20 seconds.",
        one("loop", "lag_s"),
    ),
    Metric(
        "rollmq_broker_resident_bytes",
        "gauge",
        "The broker's memory.",
        one("process", "rss_bytes"),
    ),
    Metric(
        "rollmq_broker_body_bytes",
        "gauge",
        "Message bodies that it keeps in memory.",
        one("process", "body_bytes"),
    ),
    Metric(
        "rollmq_broker_cpu_seconds_total",
        "counter",
        "Its processor time.",
        one("process", "cpu_s"),
    ),
)
STAGES: tuple[Metric, ...] = (
    Metric(
        "rollmq_stage_rollouts",
        "gauge",
        "Rollouts that are in a stage or wait for it.",
        states("stages", "stage", LIVE),
        ("stage", "state"),
    ),
    Metric(
        "rollmq_stage_queued_bytes",
        "gauge",
        "What the rollouts that wait will be sent.",
        rows("stages", STAGE, "queued_bytes"),
        STAGE,
    ),
    Metric(
        "rollmq_stage_queue_limit",
        "gauge",
        "How many may wait, on each host; of the first stage, limits.rollouts.",
        rows("stages", STAGE, "bound"),
        STAGE,
    ),
    Metric(
        "rollmq_stage_oldest_seconds",
        "gauge",
        "The longest time that a rollout is in its present state.",
        rows("stages", STAGE, "oldest_s"),
        STAGE,
    ),
    Metric(
        "rollmq_stage_slots",
        "gauge",
        "Slots of workers that answer.",
        rows("stages", STAGE, "slots"),
        STAGE,
    ),
    Metric(
        "rollmq_stage_slots_free",
        "gauge",
        "Those of them that are free.",
        rows("stages", STAGE, "slots_free"),
        STAGE,
    ),
    Metric(
        "rollmq_stage_credit_bytes",
        "gauge",
        "Bytes that workers that answer take at once.",
        rows("stages", STAGE, "credit_bytes"),
        STAGE,
    ),
    Metric(
        "rollmq_stage_used_bytes",
        "gauge",
        "Bytes of them that are in work.",
        rows("stages", STAGE, "used_bytes"),
        STAGE,
    ),
    Metric(
        "rollmq_stage_dispatched_total",
        "counter",
        "Attempts given to workers.",
        rows("stages", STAGE, "dispatched"),
        STAGE,
    ),
    Metric(
        "rollmq_stage_done_total",
        "counter",
        "Results committed.",
        rows("stages", STAGE, "done"),
        STAGE,
    ),
    Metric(
        "rollmq_stage_failed_total",
        "counter",
        "Attempts that failed.",
        rows("stages", STAGE, "failed"),
        STAGE,
    ),
    Metric(
        "rollmq_stage_queue_wait_seconds",
        "histogram",
        "From ready to dispatched.",
        rows("stages", STAGE, "queue_wait"),
        STAGE,
    ),
    Metric(
        "rollmq_stage_duration_seconds",
        "histogram",
        "From dispatched to committed.",
        rows("stages", STAGE, "duration"),
        STAGE,
    ),
)
NODES: tuple[Metric, ...] = (
    Metric(
        "rollmq_worker_leased",
        "gauge",
        "Rollouts leased to a worker.",
        rows("workers", WORKER, "leased"),
        WORKER,
    ),
    Metric("rollmq_worker_slots", "gauge", "Its slots.", rows("workers", WORKER, "slots"), WORKER),
    Metric(
        "rollmq_worker_silent",
        "gauge",
        "1 if it was not heard for a lease.",
        rows("workers", WORKER, "silent"),
        WORKER,
    ),
    Metric(
        "rollmq_node_heard_seconds",
        "gauge",
        "How long ago the broker heard a node.",
        heard,
        NODE,
    ),
    Metric(
        "rollmq_node_loop_lag_seconds",
        "gauge",
        "How late a node's event loop is; of a worker, the one that runs handlers.",
        loop_lags,
        NODE,
    ),
    Metric(
        "rollmq_client_results",
        "gauge",
        "Results that a client has not acknowledged.",
        states("clients", "client_id", RESULTS),
        ("client_id", "state"),
    ),
    Metric(
        "rollmq_client_oldest_seconds",
        "gauge",
        "How long the oldest of them has been there.",
        rows("clients", ("client_id",), "oldest_s"),
        ("client_id",),
    ),
    Metric(
        "rollmq_sandboxes",
        "gauge",
        "Sandboxes of a host.",
        node_states("sandboxes", ("held", "pinned", "warm"), "_now"),
        ("host", "state"),
    ),
    Metric(
        "rollmq_sandboxes_total",
        "counter",
        "What happened to sandboxes: started (warm: taken from the pool), ended, reaped, failed.",
        node_states("sandboxes", SANDBOX_EVENTS),
        ("host", "event"),
    ),
)
INFERENCE: tuple[Metric, ...] = (
    Metric("rollmq_router_sessions", "gauge", "Open sessions.", node("router", "sessions"), HOST),
    Metric(
        "rollmq_router_running",
        "gauge",
        "Requests that backends work on.",
        node("router", "running"),
        HOST,
    ),
    Metric(
        "rollmq_router_waiting",
        "gauge",
        "Requests that wait for a backend.",
        node("router", "waiting"),
        HOST,
    ),
    Metric(
        "rollmq_router_requests_total",
        "counter",
        "What became of requests.",
        node_states("router", ROUTED),
        ("host", "event"),
    ),
    Metric(
        "rollmq_router_policy_version",
        "gauge",
        "The weights in use.",
        node("router", "policy_version"),
        HOST,
    ),
    Metric("rollmq_backend_open", "gauge", "1 if sessions are placed on it.", opened, BACKEND),
    Metric("rollmq_backend_running", "gauge", "Requests in work.", part("running"), BACKEND),
    Metric("rollmq_backend_waiting", "gauge", "Requests that wait.", part("waiting"), BACKEND),
    Metric("rollmq_backend_sessions", "gauge", "Sessions on it.", part("sessions"), BACKEND),
    Metric("rollmq_backend_tokens_total", "counter", "Tokens sampled.", part("tokens"), BACKEND),
    Metric(
        "rollmq_backend_cache_hit_ratio",
        "gauge",
        "Share of prompt tokens that its prefix cache held.",
        part("hit_rate"),
        BACKEND,
    ),
    Metric(
        "rollmq_backend_cache_use_ratio",
        "gauge",
        "Share of its cache that is in use.",
        part("kv_use"),
        BACKEND,
    ),
    Metric(
        "rollmq_backend_stalled_seconds",
        "gauge",
        "How long it has run requests and sampled no token.",
        part("stalled_s"),
        BACKEND,
    ),
    Metric(
        "rollmq_backend_policy_version",
        "gauge",
        "The weights that it holds.",
        part("policy_version"),
        BACKEND,
    ),
)
UP = Metric("rollmq_up", "gauge", "1 if the broker answered this scrape in time.", one("up"))
SECTIONS = (
    ("Broker", (UP, *BROKER)),
    ("Stages", STAGES),
    ("Nodes, clients and sandboxes", NODES),
    ("Inference", INFERENCE),
)
METRICS: tuple[Metric, ...] = tuple(metric for _, metrics in SECTIONS for metric in metrics)
