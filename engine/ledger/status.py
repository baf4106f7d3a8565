"""The books as a report for people and tools. Reads only."""

from collections import Counter
from typing import Any

from .books import Books
from .rollouts import LedgerSampling


def status(books: Books, now: float) -> dict[str, Any]:
    """Return a JSON-able report: totals, stages, workers, clients, and bounds with their fill."""
    return {
        "broker_id": books.broker_id,
        "recovering": bool(books.recover_until > now and books.expected),
        "rollouts": len(books.rollouts),
        "counts": dict(books.counts),
        "bounds": {
            "rollouts": [books.held_rollouts, books.rules.rollouts],
            "bytes": [books.held_bytes, books.rules.bytes],
        },
        "stages": _stages(books, now),
        "workers": [_worker(worker, books, now) for worker in books.workers.values()],
        "clients": [_client(client) for client in books.clients.values()],
        "samplings": [_sampling(sampling) for sampling in books.samplings.values()],
    }


def _stages(books: Books, now: float) -> list[dict[str, Any]]:
    found: dict[int, Counter[str]] = {}
    oldest: dict[int, float] = {}
    for rollout in books.rollouts.values():
        if rollout.state in {"ended", "acked"}:
            continue
        found.setdefault(rollout.stage, Counter())[rollout.state] += 1
        waited = now - rollout.since
        oldest[rollout.stage] = max(oldest.get(rollout.stage, 0.0), waited)
    return [
        {
            "stage": rule.name,
            "ready": found.get(number, Counter())["ready"],
            "leased": found.get(number, Counter())["leased"],
            "delayed": found.get(number, Counter())["delayed"],
            "stopping": found.get(number, Counter())["stopping"],
            "oldest_s": round(oldest.get(number, 0.0), 3),
        }
        for number, rule in enumerate(books.rules.stages)
    ]


def _worker(worker: Any, books: Books, now: float) -> dict[str, Any]:
    return {
        "worker_id": worker.worker_id,
        "node": worker.node,
        "host": worker.host,
        "stage": books.rules.stages[worker.stage].name,
        "slots": worker.slots,
        "leased": len(worker.leases),
        "used_bytes": worker.used_bytes,
        "bytes": worker.bytes,
        "heard_s": round(now - worker.heard_at, 3),
        "lag_s": worker.lag_s,
        "silent": worker.silent,
    }


def _client(client: Any) -> dict[str, Any]:
    return {
        "client_id": client.client_id,
        "connected": client.connected,
        "unacked": client.unacked,
        "delivered": len(client.delivered),
        "held": len(client.held),
        "pending": len(client.pending),
        "window": client.window,
    }


def _sampling(sampling: LedgerSampling) -> dict[str, Any]:
    sampler = sampling.sampler
    return {
        "client_id": sampling.client_id,
        "sampling_id": sampling.sampling_id,
        "batch": sampler.number,
        "taken": sampler.taken,
        "kept": sampler.kept,
        "groups": sampler.spec.groups,
        "open": sampler.open,
        "wanted": sampler.wanted,
        "accepted": sampler.accepted,
        "live": sampler.live,
        "ended": sampler.source,
    }
