"""The books as a report for people and tools. Reads only.

Invariants: its cost grows with stages, hosts, workers and clients, never with rollouts.
"""

from typing import Any

from .books import Books, StageRule
from .rollouts import LedgerClient, LedgerRollout, LedgerSampling, LedgerWorker
from .waits import describe, oldest_s, slowest


def status(books: Books, now: float, rollout_id: str = "") -> dict[str, Any]:
    """Return a JSON-able report: totals, stages, workers, clients, waits, and bounds with fill.

    `rollout_id` names a rollout that is described, too: null under `rollout` if it is not known.
    """
    rules = books.rules
    named = {"rollout": describe(books, rollout_id, now)} if rollout_id else {}
    return {
        "broker_id": books.broker_id,
        "recovering": bool(books.recover_until > now and books.expected),
        "rollouts": len(books.rollouts),
        "counts": dict(books.counts),
        "rules": {"heartbeat_s": rules.heartbeat_s, "lease_s": rules.lease_s},
        "bounds": {
            "rollouts": [books.held_rollouts, rules.rollouts],
            "bytes": [books.held_bytes, rules.bytes],
        },
        "stages": [_stage(books, n, rule, now) for n, rule in enumerate(rules.stages)],
        "workers": [_worker(worker, books, now) for worker in books.workers.values()],
        "clients": [_client(client, now) for client in books.clients.values()],
        "samplings": [_sampling(sampling) for sampling in books.samplings.values()],
        "waits": slowest(books, now),
        **named,
    }


def _stage(books: Books, number: int, rule: StageRule, now: float) -> dict[str, Any]:
    figures = books.figures[number]
    queues = {host: queue for (stage, host), queue in books.queues.items() if stage == number}
    workers = [worker for worker in books.workers.values() if worker.stage == number]
    usable = [worker for worker in workers if not (worker.silent or worker.lag_s)]
    isolated = len(books.isolated.get(number, ()))
    queued = {host: len(queue) for host, queue in queues.items()}
    return {
        "stage": rule.name,
        "ready": sum(queued.values()) + isolated,
        "leased": sum(len(worker.leases) for worker in workers) - len(figures.stopping),
        "delayed": len(figures.delayed),
        "stopping": len(figures.stopping),
        "oldest_s": round(oldest_s(books, number, now), 3),
        "queued_bytes": sum(queue.bytes for queue in queues.values()),
        "queued": {host or "any": count for host, count in queued.items() if count},
        "bound": rule.ready if number else books.rules.rollouts,
        "isolated": isolated,
        "workers": len(workers),
        "workers_usable": len(usable),
        "slots": sum(worker.slots for worker in usable),
        "slots_free": sum(max(0, worker.slots - len(worker.leases)) for worker in usable),
        "credit_bytes": sum(worker.bytes for worker in usable),
        "used_bytes": sum(worker.used_bytes for worker in usable),
        "timeout_s": rule.timeout_s,
        "attempts": rule.attempts,
        "dispatched": figures.dispatched,
        "done": figures.done,
        "failed": figures.failed,
        "queue_wait": figures.queue_wait.report(),
        "duration": figures.duration.report(),
    }


def _worker(worker: LedgerWorker, books: Books, now: float) -> dict[str, Any]:
    lease_left_s = worker.heard_at + books.rules.lease_s - now if worker.leases else None
    oldest = next(iter(worker.leases.values()), None)
    culprit = worker.leases.get(worker.culprit)
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
        "lease_left_s": None if lease_left_s is None else round(lease_left_s, 3),
        "lag_s": worker.lag_s,
        "loop_s": worker.loop_s,
        "silent": worker.silent,
        "oldest": _attempt(oldest, now),
        "culprit": _attempt(culprit, now),
    }


def _attempt(rollout: LedgerRollout | None, now: float) -> dict[str, Any] | None:
    if rollout is None:
        return None
    leased_s = round(now - rollout.dispatched_at, 3)
    return {
        "rollout_id": rollout.rollout_id,
        "attempt": rollout.attempt,
        "leased_s": leased_s,
    }


def _client(client: LedgerClient, now: float) -> dict[str, Any]:
    oldest = next(iter(client.ended.values()), None)
    return {
        "client_id": client.client_id,
        "connected": client.connected,
        "heard_s": round(now - client.heard_at, 3),
        "unacked": client.unacked,
        "acked": client.acked,
        "delivered": len(client.delivered),
        "delivered_bytes": client.delivered_bytes,
        "held": len(client.held),
        "pending": len(client.pending),
        "window": client.window,
        "oldest_s": round(now - oldest.since, 3) if oldest else 0.0,
        "waits_for_credit": client.waits_for_credit,
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
