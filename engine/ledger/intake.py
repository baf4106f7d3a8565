"""The rules between trainer and broker: hello, submit, acknowledge, cancel, credit.

Admission is bounded in rollouts and bytes; a client refused as full is told when there is room.
A rollout_id that is known already is the same rollout and gets the same answer.
"""

from ..messages import (
    Accepted,
    Ack,
    Cancel,
    Hello,
    Refusal,
    Submit,
    Welcome,
)
from ..messages.trainer import RefusalCode
from . import batches
from .books import Books
from .instructions import DropTrainer, Forget, ForgetValue, Keep, KeepValue, Submitted
from .rollouts import LedgerClient, LedgerRollout, PendingCancel, Submission
from .states import LIVE

FIRST_SEQ = "first_seq"  # the key under which it is kept where numbers of forgotten clients end


def hello(books: Books, client_id: str, message: Hello, now: float) -> None:
    """Open or resume a client's stay: everything unacknowledged is delivered again."""
    client = books.client(client_id)
    client.connected = True
    client.heard_at = now
    client.window = max(1, message.window)
    client.delivered.clear()
    client.held.clear()
    client.delivered_bytes = 0
    client.pending.clear()
    client.pending.extend(sorted(client.ended))
    rules = books.rules
    welcome = Welcome(
        broker_id=books.broker_id,
        stages=tuple(stage.name for stage in rules.stages),
        heartbeat_s=rules.heartbeat_s,
        message_bytes=rules.message_bytes,
        group=rules.group,
        window=rules.client_window,
        unacked=client.unacked,
        acked_through=min(client.ended, default=client.next_seq) - 1,
    )
    books.tell(client_id, welcome)
    books.deliver(client)


def gone(books: Books, client_id: str) -> None:
    """Stop delivering to a client that has left; its results wait.

    One that never submitted is forgotten: whoever asks for the status every second is a new client
    each time.
    """
    client = books.clients.get(client_id)
    if client is not None:
        client.connected = False
        client.waits_for_credit = False
        samples = any(key[0] == client_id for key in books.samplings)
        fresh = client.next_seq == client.first_seq and not client.submissions
        if fresh and not samples:
            del books.clients[client_id]


def submit(books: Books, client_id: str, message: Submit, body_bytes: int, now: float) -> None:
    """Accept a submit, journalled before the answer, or refuse it whole."""
    client = books.clients.get(client_id)
    refusal = _refusal(books, client, message, body_bytes)
    if refusal is not None:
        code, why = refusal
        if code == "full" and message.sampling_id:
            batches.no_room(books, client_id, message.sampling_id, why, now)
        books.counts[f"refused_{code}"] += 1
        books.tell(client_id, Refusal(message.submit_id, code, why))
        return
    assert client is not None
    known = {name for name in message.rollout_ids if name in books.rollouts}
    fresh = tuple(name for name in message.rollout_ids if name not in known)
    if fresh:
        _accept(books, client, message, fresh, body_bytes, now)
    repeated = tuple(name for name in message.rollout_ids if name in known)
    books.tell(client_id, Accepted(message.submit_id, repeated))


def ack(books: Books, client_id: str, message: Ack, now: float) -> None:
    """Close the books on results that the trainer has, and deliver what the window allows."""
    client = books.clients.get(client_id)
    if client is None:
        return
    client.window = max(1, message.window)
    for first, last in message.seqs:
        few = last - first < len(client.ended)
        for seq in range(first, last + 1) if few else sorted(client.ended):
            if first <= seq <= last and seq in client.ended:
                books.acknowledge(client, seq, now)
    for first, last in message.held:
        for seq in [seq for seq in client.delivered if first <= seq <= last]:
            books.hold(client, seq)
    books.deliver(client)
    books.offer_credit()


def cancel(books: Books, client_id: str, message: Cancel, now: float) -> None:
    """Cancel rollouts; the answer is sent once all of them are over.

    A cancel_id that waits for its answer already is the same cancel: what is named is added to it.
    """
    client = books.clients.get(message.client_id or client_id)
    key = client_id, message.cancel_id
    pending = books.cancels.setdefault(key, PendingCancel(message.cancel_id, client_id))
    targets = _targets(books, client, message, pending)
    live = [target for target in targets if target.state in LIVE]
    before = {receipt.rollout_id for receipt in pending.receipts}
    over = [target.rollout_id for target in targets if target.state not in LIVE]
    pending.ended += [rollout_id for rollout_id in over if rollout_id not in before]
    pending.waiting.update(target.rollout_id for target in live)
    for target in live:
        if key not in target.cancels:
            target.cancels = (*target.cancels, key)
    books.stop(live, now, f"cancel {message.cancel_id}")
    if client is not None and message.everything:
        batches.cancel_all(books, client.client_id, now)
    if not pending.waiting and key in books.cancels:
        books.answer_cancel(pending)


def book_submission(books: Books, entry: Submitted, order: int) -> Submission:
    """Enter a submission and its rollouts, ready for the first stage; also used at restart."""
    client = books.client(entry.client_id)
    client.next_seq = max(client.next_seq, entry.next_seq)
    submission = Submission(
        order,
        entry.client_id,
        entry.group_id,
        entry.task_id,
        entry.task_kind,
        entry.priority,
        entry.group_size,
        entry.body_bytes,
    )
    client.submissions.setdefault(entry.group_id, []).append(submission)
    submission.sampling_id = entry.sampling_id
    sampling = books.samplings.get((entry.client_id, entry.sampling_id))
    if sampling is not None:
        submission.sampling, submission.prompt = sampling, entry.prompt
        sampling.submissions.setdefault(entry.prompt, []).append(submission)
        sampling.held += len(entry.rollout_ids)
    for number, rollout_id in enumerate(entry.rollout_ids, order + 1):
        rollout = LedgerRollout(number, rollout_id, submission, entry.at, entry.at)
        submission.members.append(rollout)
        books.rollouts[rollout_id] = rollout
    size = len(entry.rollout_ids)
    submission.unacked = submission.kept = size
    client.unacked += size
    books.held_rollouts += size
    books.held_bytes += entry.body_bytes
    books.next_order = max(books.next_order, order + size + 1)
    return submission


def _accept(
    books: Books,
    client: LedgerClient,
    message: Submit,
    fresh: tuple[str, ...],
    body_bytes: int,
    now: float,
) -> None:
    order = books.next_order
    entry = Submitted(
        client_id=client.client_id,
        group_id=message.group_id,
        task_id=message.task_id,
        task_kind=message.task_kind,
        priority=message.priority,
        group_size=message.group_size or len(message.rollout_ids),
        rollout_ids=fresh,
        body_bytes=body_bytes,
        at=now,
        sampling_id=message.sampling_id,
        prompt=message.prompt,
        next_seq=client.next_seq,
    )
    books.out.append(Keep(order, entry, body=True))
    submission = book_submission(books, entry, order)
    for rollout in submission.members:
        books.enqueue(rollout)
    batches.accepted(submission, now)
    books.counts["accepted"] += len(fresh)


def _refusal(
    books: Books, client: LedgerClient | None, message: Submit, body_bytes: int
) -> tuple[RefusalCode, str] | None:
    rules = books.rules
    if client is None:
        return "hello_first", "say hello before the first submit"
    if len(set(message.rollout_ids)) != len(message.rollout_ids):
        return "invalid", "rollout_ids: an id repeats within the submit"
    if len(message.rollout_ids) > rules.group:
        return "invalid", f"rollout_ids: {len(message.rollout_ids)} are over {rules.group}"
    if message.buffers[0].name != "task" or message.buffers[0].dtype != "json":
        return "invalid", "buffers: expected exactly one json buffer named `task`"
    fresh = 0
    for rollout_id in message.rollout_ids:
        known = books.rollouts.get(rollout_id)
        if known is None:
            fresh += 1
        elif known.submission.client_id != client.client_id:
            return "conflict", f"rollout_id {rollout_id} belongs to another client"
        elif known.submission.group_id != message.group_id:
            where = known.submission.group_id
            return "conflict", f"rollout_id {rollout_id} is in group {where} already"
    if message.sampling_id:
        why = batches.refusal(books, client, message, fresh)
        if why:
            return "invalid", why
    return _too_much(books, client, message, fresh, body_bytes) if fresh else None


def _too_much(
    books: Books, client: LedgerClient, message: Submit, fresh: int, body_bytes: int
) -> tuple[RefusalCode, str] | None:
    rules = books.rules
    if fresh > rules.rollouts or body_bytes > rules.bytes:
        return "invalid", f"can never fit: limits.rollouts {rules.rollouts}, bytes {rules.bytes}"
    own = books.samplings.get((client.client_id, message.sampling_id))
    others = [sampling for sampling in books.samplings.values() if sampling is not own]
    if fresh > books.room(others):
        client.waits_for_credit = True
        kept_free = sum(sampling.kept_free for sampling in others)
        kept = f" and {kept_free} kept free for samplings" if kept_free else ""
        held = f"{books.held_rollouts} rollouts are held{kept}"
        return "full", f"{held}, limits.rollouts {rules.rollouts}"
    if books.held_bytes + body_bytes > rules.bytes:
        client.waits_for_credit = True
        return "full", f"{books.held_bytes} bytes are held, limits.bytes {rules.bytes}"
    return None


def _targets(
    books: Books, client: LedgerClient | None, message: Cancel, pending: PendingCancel
) -> list[LedgerRollout]:
    if client is None:
        pending.unknown += [*message.rollout_ids, *message.group_ids]
        return []
    found: dict[str, LedgerRollout] = {}
    for rollout_id in message.rollout_ids:
        rollout = books.rollouts.get(rollout_id)
        if rollout is None or rollout.submission.client_id != client.client_id:
            pending.unknown.append(rollout_id)
        else:
            found[rollout_id] = rollout
    for group_id in message.group_ids:
        submissions = client.submissions.get(group_id)
        if submissions is None:
            pending.unknown.append(group_id)
        for submission in submissions or ():
            found.update((member.rollout_id, member) for member in submission.members)
    if message.everything:
        groups = client.submissions.values()
        members = [m for group in groups for submission in group for m in submission.members]
        found.update((m.rollout_id, m) for m in members if m.state in LIVE)
    return list(found.values())


def forget_acked(books: Books, now: float) -> None:
    """Forget acknowledged rollouts whose retention is over, and those over the bound."""
    rules, orders = books.rules, []
    touched: dict[str, int] = {}
    while books.acked:
        at, rollout = books.acked[0]
        if now - at <= rules.retention_s and len(books.acked) <= rules.rollouts:
            break
        books.acked.popleft()
        orders += _forget_one(books, rollout)
        client = books.clients[rollout.submission.client_id]
        touched[client.client_id] = client.next_seq
    for client_id, next_seq in touched.items():
        books.out.append(KeepValue(f"client {client_id}", next_seq))
    if orders:
        books.out.append(Forget(tuple(orders)))


def forget_clients(books: Books, now: float) -> None:
    """Forget clients that are owed nothing, sample nothing and were not heard for long.

    Their numbers never come again: whoever comes anew begins above them.
    """
    patience_s = max(books.rules.retention_s, books.rules.lease_s)
    busy = {client_id for client_id, _ in (*books.cancels, *books.samplings)}
    over = [
        client
        for client in books.clients.values()
        if not client.submissions
        and now - client.heard_at > patience_s
        and client.client_id not in busy
    ]
    first_seq = max((client.next_seq for client in over), default=0)
    if first_seq > books.first_seq:
        books.first_seq = first_seq
        books.out.append(KeepValue(FIRST_SEQ, first_seq))
    for client in over:
        del books.clients[client.client_id]
        books.out.append(ForgetValue(f"client {client.client_id}"))
        books.out.append(DropTrainer(client.client_id))


def _forget_one(books: Books, rollout: LedgerRollout) -> list[int]:
    submission = rollout.submission
    submission.kept -= 1
    if submission.kept:
        return []  # its entry would bring the rollout back at a restart
    batches.forgotten(submission)
    for member in submission.members:
        del books.rollouts[member.rollout_id]
    groups = books.clients[submission.client_id].submissions
    groups[submission.group_id].remove(submission)
    if not groups[submission.group_id]:
        del groups[submission.group_id]
    return [submission.order, *(member.order for member in submission.members)]
