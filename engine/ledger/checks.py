"""Every invariant of the ledger's books, checked from scratch."""

from ..errors import LedgerError
from .books import ISOLATED, Books
from .rollouts import LedgerRollout, LedgerSampling
from .states import LIVE, RUNNING


def validate(books: Books) -> None:
    """Check all indexes, counts and bounds against the rollouts themselves.

    Raises: LedgerError naming the invariant and the rollout's history.
    """
    for rollout in books.rollouts.values():
        _check_rollout(books, rollout)
    _check_workers(books)
    _check_rooms(books)
    _check_queues(books)
    _check_clients(books)
    _check_totals(books)
    for sampling in books.samplings.values():
        _check_sampling(sampling)


def _require(holds: bool, what: str, rollout: LedgerRollout | None = None) -> None:  # noqa: FBT001
    if not holds:
        history = [f"{at:.3f} {did}" for at, did in rollout.history] if rollout else ()
        name = f"rollout {rollout.rollout_id}: " if rollout else ""
        raise LedgerError(f"{name}{what}", history)


def _check_rollout(books: Books, rollout: LedgerRollout) -> None:
    worker = books.workers.get(rollout.worker_id)
    booked = worker is not None and worker.leases.get(rollout.rollout_id) is rollout
    _require(booked == (rollout.state in RUNNING), "leased if and only if booked", rollout)
    _require((rollout.ticket != 0) == (rollout.state == "ready"), "queued iff ready", rollout)
    _require(rollout.base <= rollout.attempt <= rollout.seen, "attempts in order", rollout)
    ended = rollout.state == "ended"
    _require((rollout.result is not None) == ended, "a result if and only if ended", rollout)
    _require(not rollout.cancels or rollout.state == "stopping", "cancels wait to stop", rollout)
    for key in rollout.cancels:
        waits = key in books.cancels and rollout.rollout_id in books.cancels[key].waiting
        _require(waits, f"cancel {key} is answered once it has stopped", rollout)
    pins = books.pinned.get(rollout.host, {}) if rollout.host else {}
    _require((rollout.rollout_id in pins) == bool(rollout.host), "pinned where it says", rollout)
    _require(not rollout.host or rollout.state in LIVE, "only live rollouts are pinned", rollout)
    if rollout.state == "delayed":
        waits = any(entry[2] is rollout for entry in books.delayed)
        _require(waits, "a delayed rollout has a time to wake", rollout)


def _check_workers(books: Books) -> None:
    for worker in books.workers.values():
        sizes = sum(books.input_bytes(rollout) for rollout in worker.leases.values())
        _require(worker.used_bytes == sizes, f"bytes of {worker.worker_id} add up")
        _require(not worker.alone or len(worker.leases) <= 1, "alone means alone")
        reserved = books.reserved.get(worker.stage) is worker
        _require(reserved == worker.reserved, f"{worker.worker_id} is emptied for a suspect")
        for rollout in worker.leases.values():
            _require(rollout.stage == worker.stage, "leased to a worker of its stage", rollout)
            _require(rollout.host in {"", worker.host}, "on the host it is pinned to", rollout)


def _check_rooms(books: Books) -> None:
    faults = books.rooms.faults(books.workers.values())
    _require(not faults, f"workers stand in line as they have room: {'; '.join(faults)}")


def _check_queues(books: Books) -> None:
    ready = [rollout for rollout in books.rollouts.values() if rollout.state == "ready"]
    for (stage, host), queue in books.queues.items():
        waiting = [r for r in ready if (r.stage, r.host) == (stage, host) and r.ticket > 0]
        _require(len(queue) == len(waiting), f"queue of stage {stage} host {host!r} adds up")
        sizes = sum(books.input_bytes(rollout) for rollout in waiting)
        _require(queue.bytes == sizes, f"bytes queued for stage {stage} host {host!r} add up")
        ages = [rollout.since for rollout in queue.longest(len(queue))]
        _require(ages == sorted(ages), f"queue of stage {stage} host {host!r} knows the oldest")
    for stage, figures in enumerate(books.figures):
        here = [rollout for rollout in books.rollouts.values() if rollout.stage == stage]
        for state, known in (("delayed", figures.delayed), ("stopping", figures.stopping)):
            there = {rollout.order for rollout in here if rollout.state == state}
            _require(set(known) == there, f"{state} of stage {stage} add up")
    noted = sorted(
        (stage, host) for stage in books.queued_hosts for host in books.queued_hosts[stage]
    )
    _require(noted == sorted(books.queues), "every queue of a stage is noted once")
    isolated = [rollout for line in books.isolated.values() for rollout in line]
    _require(
        {r.rollout_id for r in isolated} == {r.rollout_id for r in ready if r.ticket == ISOLATED},
        "isolated rollouts stand in their line",
    )
    for (stage, host), running in books.running.items():
        on_host = [w for w in books.workers.values() if (w.stage, w.host) == (stage, host)]
        _require(running == sum(len(w.leases) for w in on_host), f"running of {stage} adds up")


def _check_clients(books: Books) -> None:
    for rollout in books.rollouts.values():
        client_id = rollout.submission.client_id
        _require(client_id in books.clients, "its client has books", rollout)
    for client in books.clients.values():
        _require(client.next_seq >= client.first_seq, f"{client.client_id}: numbers go up")
        members = [m for group in client.submissions.values() for s in group for m in s.members]
        unacked = [member for member in members if member.state != "acked"]
        _require(client.unacked == len(unacked), f"{client.client_id}: unacked adds up")
        ended = {member.rollout_id for member in members if member.state == "ended"}
        _require({r.rollout_id for r in client.ended.values()} == ended, "every end has a number")
        both = client.delivered & set(client.pending) | client.held & {
            *client.delivered,
            *client.pending,
        }
        _require(not both, "a result is delivered, held or pending")
        sizes = [client.ended[seq].size_bytes for seq in client.delivered]
        _require(client.delivered_bytes == sum(sizes), "delivered bytes add up")
        bounded = len(sizes) <= 1 or client.delivered_bytes <= books.rules.client_bytes
        _require(bounded, "delivered bytes are bounded")
        every = client.delivered | client.held | set(client.pending)
        _require(every <= set(client.ended), "only ended rollouts are delivered")
        if client.connected:
            _require(every == set(client.ended), "every ended rollout is on its way")
        for seq, rollout in client.ended.items():
            _require(rollout.result is not None and rollout.result.seq == seq, "numbered", rollout)


def _check_totals(books: Books) -> None:
    unacked = [r for r in books.rollouts.values() if r.state != "acked"]
    _require(books.held_rollouts == len(unacked), "held rollouts add up")
    submissions = {id(r.submission): r.submission for r in unacked}
    tasks = sum(submission.body_bytes for submission in submissions.values())
    _require(books.held_bytes == tasks + sum(r.size_bytes for r in unacked), "held bytes add up")
    for cancel in books.cancels.values():
        _require(bool(cancel.waiting), f"cancel {cancel.cancel_id} is answered when all is over")
        for rollout_id in cancel.waiting:
            state = books.rollouts[rollout_id].state
            _require(state == "stopping", f"cancel {cancel.cancel_id} waits for what stops")


def _check_sampling(sampling: LedgerSampling) -> None:
    sampler, name = sampling.sampler, sampling.sampling_id
    sizes, live = sampler.sizes(), 0
    batches = [prompt for batch in sampler.sealed for prompt in batch.prompts]
    for prompt, submissions in sampling.submissions.items():
        members = [member for submission in submissions for member in submission.members]
        ended = sum(member.ended_as is not None for member in members)
        live += len(members) - ended
        known = sizes.get(prompt, (ended, ended)) == (len(members), ended)
        _require(known, f"{name}: rollouts of prompt {prompt} add up")
        mine = all(submission.sampling is sampling for submission in submissions)
        _require(mine, f"{name}: submissions of prompt {prompt} are its own")
    _require(set(sizes) <= set(sampling.submissions), f"{name}: every group has rollouts")
    _require(sampler.live == live, f"{name}: rollouts under way add up")
    unacked = sum(s.unacked for submissions in sampling.submissions.values() for s in submissions)
    _require(sampling.held == unacked, f"{name}: rollouts held add up")
    _require(sampler.kept < sampler.spec.groups, f"{name}: a full batch is complete")
    _require(len(set(batches)) == len(batches), f"{name}: a group is in one batch")
    _require(not set(batches) & set(sampler.verdicts), f"{name}: a group of a batch is not judged")
    _require(not (sampler.is_over and sampler.open), f"{name}: nothing is open in the end")
