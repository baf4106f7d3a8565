"""The rules between broker and workers: credit, dispatch, leases, results, retries, loss.

An attempt is named by its number and its worker together: only that pair renews or ends a lease.
A finished result of any attempt is taken while none is committed; whatever else an old attempt says
changes nothing. Work that a worker's end interrupted is given to others without blame, unless the
worker's own bus side saw whose code was running. Where nobody saw, rollouts that were there at two
such ends run alone from then on, so that one which kills its workers convicts itself and no other.
Where what a rollout had pinned is gone, it begins again, a few times; then that counts like any
failure.
"""

from typing import Literal

from msgspec.structs import replace

from ..messages import (
    Heartbeat,
    HeartbeatReply,
    Held,
    HelloAgain,
    Problem,
    StageResult,
    WorkerCredit,
    WorkerHello,
    WorkerLost,
    WorkerWelcome,
)
from ..records import Failure, StageTiming, Usage
from .books import Books, sum_of
from .instructions import (
    WORKERS,
    AttemptFailed,
    DropWorker,
    FreeBody,
    Keep,
    KeepValue,
    Reply,
    Rewound,
    Settle,
    StageDone,
)
from .rollouts import LedgerRollout, LedgerWorker
from .states import LIVE, RUNNING

KEPT_FAILURES = 20  # a rollout's result names its last failures; all of them are in the journal
NOBODY = "-"  # no rollout has this id: nobody is to blame
MOST_LOSSES = 5  # of a rollout's pins and deliveries: more, and it is what ends it
FORGET_LEASES = 10  # a worker unheard of for this many leases must say hello again


def hello(books: Books, message: WorkerHello, now: float) -> None:
    """Take up a worker and adopt what it holds; a node's new process ends the one before."""
    names = [stage.name for stage in books.rules.stages]
    if message.stage not in names:
        why = f"{message.stage!r} is not one of {', '.join(names)}"
        books.out.append(Reply(message.worker_id, Problem("refused", "stage", why)))
        return
    worker = books.workers.get(message.worker_id)
    if worker is None:
        _end_predecessors(books, message, now)
        worker = LedgerWorker(
            message.worker_id,
            message.node,
            message.host,
            names.index(message.stage),
            message.slots,
            message.bytes,
            now,
        )
        books.workers[worker.worker_id] = worker
        _keep_workers(books)
    worker.slots, worker.bytes = message.slots, message.bytes
    _heard(books, worker, now)
    books.credit_changed(worker)
    books.expected.discard(worker.worker_id)
    drop = _renew(books, worker, message.held, now)
    if worker.cut:
        _give_back(books, worker, now)
    welcome = WorkerWelcome(books.broker_id, "-", drop)
    books.out.append(Reply(worker.worker_id, welcome))


def heartbeat(books: Books, message: Heartbeat, now: float) -> None:
    """Renew the leases listed; the answer lists what the worker must stop."""
    worker = books.workers.get(message.worker_id)
    if worker is None:
        books.out.append(Reply(message.worker_id, HelloAgain(books.broker_id)))
        return
    changed = bool(worker.lag_s) != bool(message.lag_s)
    worker.lag_s, worker.loop_s, worker.culprit = message.lag_s, message.loop_s, message.culprit
    if changed:
        books.credit_changed(worker)
    _heard(books, worker, now)
    drop = _renew(books, worker, message.held, now)
    books.out.append(Reply(worker.worker_id, HeartbeatReply(books.broker_id, drop)))
    if worker.cut:
        books.out.append(Reply(worker.worker_id, HelloAgain(books.broker_id)))


def pipe_closed(books: Books, worker_id: str) -> None:
    """Give a worker nothing before its next hello, which tells what had reached it."""
    worker = books.workers.get(worker_id)
    if worker is not None:
        worker.cut = True
        books.credit_changed(worker)
        books.out.append(Reply(worker_id, HelloAgain(books.broker_id)))


def credit(books: Books, message: WorkerCredit, now: float) -> None:
    """Change a worker's credit; what it holds already is not touched."""
    worker = books.workers.get(message.worker_id)
    if worker is not None:
        worker.slots, worker.bytes = message.slots, message.bytes
        _heard(books, worker, now)
        books.credit_changed(worker)


def lost(books: Books, message: WorkerLost, now: float) -> None:
    """End every lease of a worker whose process is gone, as its own bus side reports."""
    worker = books.workers.get(message.worker_id)
    if worker is not None:
        end_worker(books, worker, now, message.culprit, message.error, message.message)
    books.out.append(Reply(message.worker_id, HeartbeatReply(books.broker_id, ())))


def goodbye(books: Books, worker_id: str, now: float) -> None:
    """Let a drained worker go."""
    worker = books.workers.get(worker_id)
    if worker is not None:
        end_worker(books, worker, now, NOBODY, "Left", "the worker left")


def result(books: Books, message: StageResult, body_bytes: int, now: float) -> None:
    """Take how an attempt ended; whatever it says, the worker may then forget it."""
    rollout = books.rollouts.get(message.rollout_id)
    if rollout is None or not _belongs(books, rollout, message):
        books.counts["late"] += 1
    elif message.pinned and message.worker_id not in books.workers:
        books.out.append(Reply(message.worker_id, HelloAgain(books.broker_id)))
        return  # only a hello names the host; the worker keeps the result and sends it again
    else:
        rollout.seen = max(rollout.seen, message.attempt)
        current = rollout.attempt == message.attempt and rollout.worker_id == message.worker_id
        if rollout.state == "stopping":
            if current:
                books.end_cancelled(rollout, message.usage or Usage(), now)
        elif message.status == "done":
            _commit(books, rollout, message, body_bytes, now)
        elif current and rollout.state == "leased":
            _unfinished(books, rollout, message, now)
            rollout.worker_id = ""  # this attempt is over: it cannot be adopted
    books.out.append(Settle(message.worker_id, message.rollout_id, message.attempt))


def end_worker(
    books: Books,
    worker: LedgerWorker,
    now: float,
    culprit: str,
    error: str,
    why: str,
) -> None:
    """Remove a worker; `culprit` is a rollout, NOBODY, or "" if nobody saw what happened."""
    alone = worker.alone
    for rollout in list(worker.leases.values()):
        books.unlease(rollout)
        blamed = rollout.rollout_id == culprit or (alone and not culprit)
        failure = _failure(books, worker, rollout, "worker", error, why)
        _interrupted(books, rollout, failure, now, blamed=blamed, suspected=not culprit)
    del books.workers[worker.worker_id]
    books.rooms.gone(worker)
    books.out.append(DropWorker(worker.worker_id))
    _keep_workers(books)
    books.dirty.update(range(len(books.rules.stages)))


def expire(books: Books, now: float) -> None:
    """End leases that nobody renewed; set workers aside that were not heard."""
    lease_s = books.rules.lease_s
    for worker in list(books.workers.values()):
        if now - worker.heard_at >= lease_s and not worker.silent:
            worker.silent = True
            books.credit_changed(worker)
        if now - worker.heard_at > FORGET_LEASES * lease_s:
            end_worker(books, worker, now, "", "Silent", "the worker was not heard")
            continue
        late = [rollout for rollout in worker.leases.values() if rollout.deadline <= now]
        for rollout in late:
            _expire_one(books, worker, rollout, now)


def prolong(books: Books, now: float) -> None:
    """Give every lease its whole time again: nobody could have renewed it."""
    until = now + books.rules.lease_s
    for worker in books.workers.values():
        for rollout in worker.leases.values():
            rollout.deadline = max(rollout.deadline, until)


def _expire_one(books: Books, worker: LedgerWorker, rollout: LedgerRollout, now: float) -> None:
    books.counts["expired"] += 1
    if worker.cut or not (worker.silent or rollout.confirmed):
        _undelivered(books, worker, rollout, now)
        return
    alone = worker.alone
    why = f"no heartbeat renewed the lease for {books.rules.lease_s:g} s"
    failure = _failure(books, worker, rollout, "lease", "LeaseExpired", why)
    books.stop_attempts([rollout])
    books.unlease(rollout)
    _interrupted(books, rollout, failure, now, blamed=alone, suspected=True)


def _give_back(books: Books, worker: LedgerWorker, now: float) -> None:
    """Take up a worker whose pipe was closed: what it never had is given to anybody."""
    for rollout in list(worker.leases.values()):
        if not rollout.confirmed:
            _undelivered(books, worker, rollout, now)
    worker.cut = False
    books.credit_changed(worker)


def _undelivered(books: Books, worker: LedgerWorker, rollout: LedgerRollout, now: float) -> None:
    """End a lease whose work did not reach the worker, which is not the rollout's fault.

    Where that happens again and again, it is what ends the rollout.
    """
    books.counts["undelivered"] += 1
    how = "the worker's pipe was closed" if worker.cut else "the worker is heard"
    why = f"{how}, and the work did not reach it"
    failure = _failure(books, worker, rollout, "lease", "Undelivered", why)
    books.stop_attempts([rollout])
    books.unlease(rollout)
    rollout.avoid = worker.worker_id
    rollout.losses += 1
    blamed = rollout.losses > MOST_LOSSES
    _interrupted(books, rollout, failure, now, blamed=blamed, suspected=False)


def _failure(
    books: Books,
    worker: LedgerWorker,
    rollout: LedgerRollout,
    boundary: Literal["worker", "lease"],
    error: str,
    why: str,
) -> Failure:
    stage = books.stage_name(rollout)
    return Failure(stage, rollout.attempt, boundary, error, why, worker.node)


def wake_delayed(books: Books, rollout: LedgerRollout, now: float) -> None:
    """Make a rollout ready again whose wait after a failure is over."""
    if rollout.state == "delayed":
        rollout.step("due", now)
        books.figures[rollout.stage].delayed.pop(rollout.order, None)
        books.enqueue(rollout)


def rewind_lost_hosts(books: Books, now: float) -> None:
    """Start rollouts again whose host, with their sandbox, is gone, or has no worker for them."""
    for worker in books.workers.values():
        if not worker.silent:
            books.post_seen[worker.host, worker.stage] = now
    for host, rollouts in books.pinned.items():
        lost = _stages_lost(books, host, now) if rollouts else set()
        if not lost:
            continue
        for rollout in list(rollouts.values()):
            if rollout.state in {"ready", "delayed"} and rollout.stage in lost:
                rewind(books, rollout, now, f"{books.stage_name(rollout)} on {host} is lost")
                books.out += [Keep(rollout.order, Rewound()), FreeBody(rollout.order)]


def _stages_lost(books: Books, host: str, now: float) -> set[int]:
    """Return the stages of which a host has had no worker for a lease."""
    seen = books.post_seen
    stages = range(len(books.rules.stages))
    return {
        stage for stage in stages if now - seen.setdefault((host, stage), now) > books.rules.lease_s
    }


def rewind(books: Books, rollout: LedgerRollout, now: float, why: str) -> None:
    """Void a rollout's checkpoints and put it back to the first stage; also used at restart."""
    books.unqueue(rollout)
    books.unlease(rollout)
    rollout.step("rewind", now, why)
    books.pin(rollout, "")
    books.held_bytes -= rollout.size_bytes
    rollout.size_bytes = 0
    rollout.stage = 0
    rollout.failed = 0
    rollout.base = rollout.attempt = rollout.seen
    rollout.timings = ()
    rollout.policy_version = None
    rollout.reward = rollout.rewards = rollout.trainable = rollout.outcome = None
    books.enqueue(rollout)


def apply_stage(books: Books, rollout: LedgerRollout, entry: StageDone) -> bool:
    """Book a committed stage; return whether it was the last. Also used at restart."""
    rollout.base = entry.attempt
    rollout.attempt = max(rollout.attempt, entry.attempt)
    rollout.seen = max(rollout.seen, entry.attempt)
    rollout.size_bytes += entry.body_bytes
    books.held_bytes += entry.body_bytes
    rollout.failed = rollout.deaths = 0
    rollout.timings = (*rollout.timings, entry.timing)
    spent = Usage(entry.turns, entry.tokens, entry.seconds)
    rollout.usage = sum_of(rollout.usage, spent)
    if rollout.policy_version is None:
        rollout.policy_version = entry.policy_version
    rollout.outcome = entry.outcome or rollout.outcome
    if entry.reward is not None:
        rollout.reward = entry.reward
    if entry.rewards is not None:
        rollout.rewards = entry.rewards
    if entry.trainable is not None:
        rollout.trainable = entry.trainable
    if entry.pinned:
        books.pin(rollout, entry.host)
    return entry.final or rollout.stage + 1 == len(books.rules.stages)


def _heard(books: Books, worker: LedgerWorker, now: float) -> None:
    worker.heard_at = now
    books.post_seen[worker.host, worker.stage] = now
    if worker.silent:
        worker.silent = False
        books.credit_changed(worker)


def _keep_workers(books: Books) -> None:
    known = dict.fromkeys([*books.workers, *sorted(books.expected)])
    books.out.append(KeepValue(WORKERS, list(known)))


def _end_predecessors(books: Books, message: WorkerHello, now: float) -> None:
    for other in list(books.workers.values()):
        if (other.host, other.node) == (message.host, message.node):
            end_worker(books, other, now, "", "Replaced", "its node has a new process")


def _renew(
    books: Books, worker: LedgerWorker, held: tuple[Held, ...], now: float
) -> tuple[Held, ...]:
    until = now + books.rules.lease_s
    drop = []
    for name, attempt in held:
        rollout = worker.leases.get(name)
        if rollout is not None and rollout.attempt == attempt:
            if rollout.state == "stopping":
                drop.append((name, attempt))
            else:
                rollout.deadline = until
                rollout.confirmed = True
        elif not _adopt(books, worker, name, attempt, now):
            drop.append((name, attempt))
    return tuple(drop)


def _adopt(books: Books, worker: LedgerWorker, name: str, attempt: int, now: float) -> bool:
    rollout = books.rollouts.get(name)
    if rollout is None:
        return False
    known = rollout.worker_id == worker.worker_id and attempt == rollout.attempt
    latest = attempt > rollout.seen or (known and attempt > rollout.base)
    rollout.seen = max(rollout.seen, attempt)  # nobody is given this number again
    if rollout.state not in {"ready", "delayed"} or rollout.stage != worker.stage:
        return False
    if worker.alone or rollout.host not in {"", worker.host} or not latest:
        return False
    books.unqueue(rollout)
    rollout.step("adopt", now, f"attempt {attempt} on {worker.worker_id}")
    rollout.attempt = attempt
    books.lease(rollout, worker, now)
    rollout.confirmed = True
    books.counts["adopted"] += 1
    return True


def _belongs(books: Books, rollout: LedgerRollout, message: StageResult) -> bool:
    return (
        rollout.state in LIVE
        and message.stage == books.stage_name(rollout)
        and message.attempt > rollout.base
    )


def _commit(
    books: Books, rollout: LedgerRollout, message: StageResult, body_bytes: int, now: float
) -> None:
    current = (rollout.attempt, rollout.worker_id) == (message.attempt, message.worker_id)
    newer = [rollout] if rollout.state in RUNNING and not current else []
    worker = books.workers.get(message.worker_id)
    spent = message.usage or Usage()
    entry = StageDone(
        stage=message.stage,
        attempt=message.attempt,
        worker_id=message.worker_id,
        host=worker.host if worker else rollout.host,
        final=message.final,
        pinned=message.pinned and worker is not None,
        outcome=message.outcome,
        reward=message.reward,
        rewards=message.rewards,
        trainable=message.trainable,
        turns=spent.turns,
        tokens=spent.tokens,
        seconds=spent.seconds,
        timing=_timing(rollout, message, worker, now),
        body_bytes=body_bytes,
        policy_version=message.policy_version,
    )
    figures = books.figures[rollout.stage]
    figures.done += 1
    figures.duration.add(entry.timing.lease_s)
    books.out.append(Keep(rollout.order, entry, body=bool(message.buffers)))
    books.stop_attempts(newer)
    books.unqueue(rollout)
    books.unlease(rollout)
    if apply_stage(books, rollout, entry):
        books.end(rollout, rollout.outcome or "completed", now)
    else:
        rollout.step("advance", now, message.stage)
        rollout.stage += 1
        books.enqueue(rollout)


def _timing(
    rollout: LedgerRollout, message: StageResult, worker: LedgerWorker | None, now: float
) -> StageTiming:
    node = worker.node if worker else message.worker_id
    leased = max(0.0, now - rollout.dispatched_at)
    return StageTiming(
        message.stage, message.attempt, node, rollout.queue_s, leased, message.work_s
    )


def _unfinished(books: Books, rollout: LedgerRollout, message: StageResult, now: float) -> None:
    if message.status not in {"failed", "lost"} or message.failure is None:
        books.release(rollout, now, f"attempt {message.attempt} {message.status}")
        return
    failure = replace(message.failure, stage=message.stage, attempt=message.attempt)
    if message.status == "lost" and rollout.host and rollout.losses < MOST_LOSSES:
        _begin_again(books, rollout, failure, now)
    else:
        fail(books, rollout, failure, now, retry=message.retry)


def _begin_again(books: Books, rollout: LedgerRollout, failure: Failure, now: float) -> None:
    """Put a rollout back to the first stage whose pin is gone; its attempts count anew."""
    note_failure(books, rollout, failure, counted=True)
    rewind(books, rollout, now, "what it had pinned is gone")
    rollout.losses += 1
    books.counts["pins_lost"] += 1
    books.out += [Keep(rollout.order, Rewound(lost=True)), FreeBody(rollout.order)]


def fail(
    books: Books, rollout: LedgerRollout, failure: Failure, now: float, *, retry: bool
) -> None:
    """Count a leased rollout's failed attempt: another one after a delay, or the end."""
    note_failure(books, rollout, failure, counted=True)
    rollout.avoid = rollout.worker_id
    allowed = books.rules.stages[rollout.stage].attempts
    if retry and rollout.failed < allowed:
        books.delay(rollout, now, f"{failure.boundary}: {failure.error}")
    else:
        books.end(rollout, "failed", now)


def note_failure(books: Books, rollout: LedgerRollout, failure: Failure, *, counted: bool) -> None:
    """Journal why an attempt failed."""
    rollout.failures = (*rollout.failures, failure)[-KEPT_FAILURES:]
    rollout.failed += counted
    books.figures[rollout.stage].failed += 1
    entry = AttemptFailed(failure, counted)
    books.out.append(Keep(rollout.order, entry))


def _interrupted(
    books: Books,
    rollout: LedgerRollout,
    failure: Failure,
    now: float,
    *,
    blamed: bool,
    suspected: bool,
) -> None:
    if rollout.state == "stopping":
        books.end_cancelled(rollout, Usage(), now)
    elif blamed:
        fail(books, rollout, failure, now, retry=True)
    else:
        if suspected:
            rollout.deaths += 1
            note_failure(books, rollout, failure, counted=False)
        books.release(rollout, now, failure.error)
