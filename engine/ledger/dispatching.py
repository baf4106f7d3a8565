"""Which worker gets which rollout: fair order, credit, the next stage's room, and isolation.

A stage admits a rollout only while the stage after it has room for it on that host. A rollout that
was there when workers went for no known reason gets a worker to itself: the one with the least work
is emptied for it. The rest goes to the worker with the most room, not the one that it failed on.
"""

from .books import Books
from .instructions import Dispatch
from .rollouts import LedgerRollout, LedgerWorker


def dispatch(books: Books, now: float) -> None:
    """Give ready rollouts to workers, as far as credit and the next stage's room allow."""
    if books.recover_until > now and books.expected:
        return
    if books.recover_until:
        books.recover_until = 0.0
        books.expected.clear()
        books.dirty.update(range(len(books.rules.stages)))
    for stage in reversed(range(len(books.rules.stages))):
        if stage in books.dirty:
            _dispatch_isolated(books, stage, now)
            _dispatch_stage(books, stage, now)
    books.dirty.clear()


def _unreserve(books: Books, worker: LedgerWorker) -> None:
    """Let a worker that was being emptied take work again."""
    if worker.reserved:
        worker.reserved = False
        del books.reserved[worker.stage]


def _dispatch_isolated(books: Books, stage: int, now: float) -> None:
    waiting = books.isolated.get(stage)
    while waiting:
        rollout = waiting[0]
        able = [worker for worker in books.workers.values() if _may_take(worker, rollout)]
        idle = [worker for worker in able if not worker.leases]
        if not idle:
            _reserve(books, stage, able)
            return
        waiting.popleft()
        rollout.ticket = 0
        _start(books, rollout, idle[0], now)
        idle[0].alone = True
    _reserve(books, stage, [])


def _reserve(books: Books, stage: int, able: list[LedgerWorker]) -> None:
    reserved = books.reserved.get(stage)
    if reserved is not None and reserved not in able:
        _unreserve(books, reserved)
    if able and stage not in books.reserved:
        books.reserved[stage] = min(able, key=lambda worker: len(worker.leases))
        books.reserved[stage].reserved = True


def _may_take(worker: LedgerWorker, rollout: LedgerRollout) -> bool:
    able = worker.slots > 0 and not (worker.silent or worker.lag_s or worker.alone)
    return able and worker.stage == rollout.stage and rollout.host in {"", worker.host}


def _dispatch_stage(books: Books, stage: int, now: float) -> None:
    able = [worker for worker in books.workers.values() if worker.stage == stage]
    for host in dict.fromkeys(worker.host for worker in able):
        _dispatch_queue(books, stage, host, [w for w in able if w.host == host], now)
    _dispatch_queue(books, stage, "", able, now)


def _dispatch_queue(
    books: Books, stage: int, host: str, able: list[LedgerWorker], now: float
) -> None:
    queue = books.queues.get((stage, host))
    while queue:
        rollout = queue.head()
        if rollout is None:
            return
        size = books.input_bytes(rollout)
        open_workers = [
            w for w in able if w.has_room(size) and _next_has_room(books, stage, w.host)
        ]
        if not open_workers:
            return
        worker = min(
            open_workers,
            key=lambda w: (w.worker_id == rollout.avoid, len(w.leases) / w.slots, w.used_at),
        )
        queue.take()
        _start(books, rollout, worker, now)


def _next_has_room(books: Books, stage: int, host: str) -> bool:
    after = stage + 1
    if after == len(books.rules.stages):
        return True
    waiting = len(books.queue(after, "")) + (len(books.queue(after, host)) if host else 0)
    return waiting + books.running[stage, host] < books.rules.stages[after].ready


def _start(books: Books, rollout: LedgerRollout, worker: LedgerWorker, now: float) -> None:
    rollout.queue_s = max(0.0, now - rollout.since)
    books.figures[rollout.stage].dispatched += 1
    books.figures[rollout.stage].queue_wait.add(rollout.queue_s)
    rollout.step("dispatch", now, worker.worker_id)
    rollout.seen += 1
    rollout.attempt = rollout.seen
    books.lease(rollout, worker, now)
    if rollout.stage:
        books.dirty.add(rollout.stage - 1)
    submission = rollout.submission
    books.out.append(
        Dispatch(
            worker.worker_id,
            submission.order,
            rollout.order,
            rollout.rollout_id,
            submission.group_id,
            submission.task_id,
            submission.task_kind,
            rollout.stage,
            rollout.attempt,
        )
    )
