"""Who waits for what, since when, and who owns the wait. Reads only.

Job: name the slowest waits, and describe one rollout.
Does not know: what is done about a wait.
Invariants: candidates are the heads of what is kept in order of age (each queue, each worker's
leases, each client's results), so a look costs stages, workers and clients, never rollouts.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from msgspec import to_builtins

from .books import ISOLATED, Books
from .rollouts import LedgerRollout, LedgerWorker
from .states import RUNNING

MOST = 20  # waits in a report
HEADS = 4  # candidates of one queue, worker or client
NAMED = 3  # owners that a sentence names


class Wait(NamedTuple):
    """What a rollout waits for, and whose turn it is; `bound_s` is when that ends, 0 for never."""

    what: str
    owner: str
    bound_s: float = 0.0


def slowest(books: Books, now: float) -> list[dict[str, Any]]:
    """Return the longest waits, the longest first."""
    found = sorted(_candidates(books), key=lambda rollout: rollout.since)[:MOST]
    return [_row(books, rollout, now) for rollout in found]


def describe(books: Books, rollout_id: str, now: float) -> dict[str, Any] | None:
    """Return all that is known of a rollout; None if nothing is."""
    rollout = books.rollouts.get(rollout_id)
    if rollout is None:
        return None
    submission = rollout.submission
    return {
        **_row(books, rollout, now),
        "group_id": submission.group_id,
        "task_id": submission.task_id,
        "task_kind": submission.task_kind,
        "host": rollout.host,
        "outcome": rollout.ended_as,
        "failed": rollout.failed,
        "age_s": round(now - rollout.accepted_at, 3),
        "failures": to_builtins(rollout.failures),
        "timings": to_builtins(rollout.timings),
        "history": [[round(now - at, 3), what.strip()] for at, what in rollout.history],
    }


def oldest_s(books: Books, stage: int, now: float) -> float:
    """Return the longest time that a live rollout of a stage has been in its state, in seconds."""
    since = [rollout.since for rollout in _live(books, stage, 1)]
    return now - min(since) if since else 0.0


def _candidates(books: Books) -> Iterator[LedgerRollout]:
    for stage in range(len(books.rules.stages)):
        yield from _live(books, stage, HEADS)
    for client in books.clients.values():
        yield from islice(client.ended.values(), HEADS)


def _live(books: Books, stage: int, most: int) -> Iterator[LedgerRollout]:
    for (place, _), queue in books.queues.items():
        if place == stage:
            yield from queue.longest(most)
    yield from islice(books.isolated.get(stage, ()), most)
    yield from islice(books.figures[stage].delayed.values(), most)
    for worker in books.workers.values():
        if worker.stage == stage:
            yield from islice(worker.leases.values(), HEADS)


def _row(books: Books, rollout: LedgerRollout, now: float) -> dict[str, Any]:
    wait = _wait(books, rollout, now)
    worker = books.workers.get(rollout.worker_id) if rollout.state in RUNNING else None
    return {
        "rollout_id": rollout.rollout_id,
        "client_id": rollout.submission.client_id,
        "state": rollout.state,
        "stage": books.stage_name(rollout),
        "attempt": rollout.attempt,
        "since_s": round(now - rollout.since, 3),
        "waits_for": wait.what,
        "owner": wait.owner,
        "bound_s": round(wait.bound_s, 3),
        "lease_left_s": round(rollout.deadline - now, 3) if worker else None,
    }


def _wait(books: Books, rollout: LedgerRollout, now: float) -> Wait:
    rule = books.rules.stages[rollout.stage]
    match rollout.state:
        case "ready":
            return _for_a_worker(books, rollout, now)
        case "leased" | "stopping":
            worker = books.workers[rollout.worker_id]
            where = f"{worker.node} on {worker.host}"
            if rollout.state == "stopping":
                return Wait(f"attempt {rollout.attempt} to stop", where, books.rules.stop_s)
            return Wait(f"the result of attempt {rollout.attempt}", where, rule.timeout_s)
        case "delayed":
            longest_s = books.rules.retry_delay_s * 2 ** (rollout.failed - 1)
            return Wait(f"its next attempt after {rollout.failed} failed", "broker", longest_s)
        case "ended":
            return _for_its_client(books, rollout)
        case _:
            return Wait("nothing", "", books.rules.retention_s)


def _for_its_client(books: Books, rollout: LedgerRollout) -> Wait:
    client = books.clients[rollout.submission.client_id]
    assert rollout.result is not None
    if not client.connected:
        return Wait("its client to come back", client.client_id)
    if rollout.result.seq in client.delivered | client.held:
        return Wait("its acknowledgement", client.client_id)
    return Wait("room in its client's window", client.client_id)


def _for_a_worker(books: Books, rollout: LedgerRollout, now: float) -> Wait:
    name = books.stage_name(rollout)
    place = f" on {rollout.host}" if rollout.host else ""
    able = [
        worker
        for worker in books.workers.values()
        if worker.stage == rollout.stage and rollout.host in {"", worker.host}
    ]
    heard = [worker for worker in able if not (worker.silent or worker.lag_s)]
    size = books.input_bytes(rollout)
    if books.recover_until > now and books.expected:
        return Wait("workers known before the restart", _names(books.expected))
    if not able:
        return Wait(f"a worker of {name}{place}: there is none", f"stage {name}")
    if not heard:
        return Wait(f"a worker of {name}{place} that answers", _nodes(able))
    if rollout.ticket == ISOLATED:
        return Wait(f"a worker of {name}{place} to itself", _nodes(heard))
    if not any(worker.has_room(size) for worker in heard):
        leased, slots = sum(len(w.leases) for w in heard), sum(w.slots for w in heard)
        return Wait(f"credit: {leased} of {slots} slots of {name}{place} leased", _nodes(heard))
    if rollout.stage + 1 < len(books.rules.stages):
        after = books.rules.stages[rollout.stage + 1].name
        return Wait(f"room before {after}, or its turn", f"stage {after}")
    return Wait(f"its turn in {name}", "broker")


def _nodes(workers: list[LedgerWorker]) -> str:
    return _names(worker.node for worker in workers)


def _names(names: Any) -> str:
    listed = list(names)
    rest = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + rest
