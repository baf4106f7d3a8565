"""Which worker gets which rollout: fair order, credit, the next stage's room, and isolation.

A stage admits a rollout only while the stage after it has room for it on that host. A rollout that
was there when workers went for no known reason gets a worker to itself: the one with the least work
is emptied for it. The rest goes to the worker with the most room, not the one that it failed on.
"""

from .books import Books
from .instructions import Dispatch
from .rollouts import LedgerRollout, LedgerWorker
from .rooms import ANY


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
        if books.workers.get(worker.worker_id) is worker:
            books.rooms.changed(worker)
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
        books.rooms.changed(idle[0])
    _reserve(books, stage, [])


def _reserve(books: Books, stage: int, able: list[LedgerWorker]) -> None:
    reserved = books.reserved.get(stage)
    if reserved is not None and reserved not in able:
        _unreserve(books, reserved)
    if able and stage not in books.reserved:
        emptied = books.reserved[stage] = min(able, key=lambda worker: len(worker.leases))
        emptied.reserved = True
        books.rooms.changed(emptied)


def _may_take(worker: LedgerWorker, rollout: LedgerRollout) -> bool:
    able = worker.slots > 0 and not (worker.silent or worker.cut or worker.lag_s or worker.alone)
    return able and worker.stage == rollout.stage and rollout.host in {"", worker.host}


def _dispatch_stage(books: Books, stage: int, now: float) -> None:
    for host in books.queued_hosts.get(stage, ()):
        if host != ANY:
            _dispatch_queue(books, stage, host, now)
    _dispatch_queue(books, stage, ANY, now)


def _dispatch_queue(books: Books, stage: int, host: str, now: float) -> None:
    queue = books.queues.get((stage, host))
    if not queue:
        return
    known: dict[str, bool] = {}  # hosts whose next stage has room: only what starts here changes it

    def is_open(name: str) -> bool:
        found = known.get(name)
        if found is None:
            found = known[name] = _next_has_room(books, stage, name)
        return found

    while (rollout := queue.head()) is not None:
        size = books.input_bytes(rollout)
        worker = books.rooms.best(stage, host, size, rollout.avoid, is_open)
        if worker is None:
            return
        queue.take()
        _start(books, rollout, worker, now)
        del known[worker.host]


def _next_has_room(books: Books, stage: int, host: str) -> bool:
    after = stage + 1
    if after == len(books.rules.stages):
        return True
    waiting = books.queued(after, ANY) + books.queued(after, host)
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
