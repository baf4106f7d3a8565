"""The rules between a trainer's sampling and the books: what a sampler decides is carried out here.

Opening reserves room: the batches that may fill, whole, and one group more fit into limits.rollouts
beside what others hold or have reserved, and nobody else is given what is reserved and free. So
none ever waits for room that another one holds.
"""

import inspect
from collections.abc import Iterable, Sequence

from ..messages import Batch, EndSample, Judged, Refusal, Sample, Submit, Wanted
from ..messages.trainer import RefusalCode
from ..sampling import (
    Complete,
    Filter,
    Judge,
    Member,
    Sampler,
    SamplerState,
    Spec,
    Stop,
    StopStale,
    read_state,
)
from .books import Books, reward_of
from .instructions import ForgetValue, KeepValue
from .rollouts import LedgerClient, LedgerRollout, LedgerSampling, Submission
from .states import LIVE

POLICY = "policy_version"  # the key that it is journalled under
PREFIX = "sampling "


def sample(books: Books, client_id: str, message: Sample, now: float) -> None:
    """Open a sampling, or take up how far its trainer is."""
    sampling = books.samplings.get((client_id, message.sampling_id))
    if sampling is None:
        sampling = _open(books, client_id, message, now)
    elif sampling.sampler.spec != message.spec:
        _refuse(books, client_id, message, "is open with another spec")
        return
    if sampling is None:
        return
    sampler = sampling.sampler
    if message.again:
        _tell_again(sampling)  # before what is taken now is let go of: its report may be news
    taken = sampler.take(message.taken)
    if taken:
        _keep(books, sampling, now)  # first: a batch whose results are gone is never told again
    _acknowledge(books, sampling, taken, now)
    books.offer_credit()
    sampler.end_source(message.source, message.given, message.why, now)
    sampling.changed = True
    sampling.told = (-1, ())  # an answer, in any case


def end_sample(books: Books, client_id: str, message: EndSample, now: float) -> None:
    """Close a sampling: cancel what is under way, and acknowledge all of it."""
    sampling = books.samplings.pop((client_id, message.sampling_id), None)
    if sampling is None:
        return
    books.out.append(ForgetValue(sampling.key))
    everything = list(_submissions(sampling))
    for submission in everything:
        submission.sampling, submission.closed = None, True
    books.stop([m for s in everything for m in s.members], now, "its sampling is closed")
    _acknowledge(books, sampling, list(sampling.submissions), now)
    books.offer_credit()


def close_again(books: Books, now: float) -> None:
    """Carry on, after a restart, with the end of samplings that were closed before it."""
    live: list[LedgerRollout] = []
    for rollout in list(books.rollouts.values()):
        if rollout.submission.closed and rollout.result is not None:
            client = books.clients[rollout.submission.client_id]
            books.acknowledge(client, rollout.result.seq, now)
        elif rollout.submission.closed and rollout.state in LIVE:
            live.append(rollout)
    books.stop(live, now, "its sampling is closed")


def refusal(books: Books, client: LedgerClient, message: Submit, fresh: int) -> str:
    """Return why a submit for a sampling, with so many new rollouts, is wrong; empty if it is not.

    One with nothing new is a repeat, and right even if the sampling is closed by now.
    """
    sampling = books.samplings.get((client.client_id, message.sampling_id))
    if not fresh:
        return ""
    if sampling is None:
        return f"sampling_id: {message.sampling_id!r} is not open"
    group = client.submissions.get(message.group_id)
    if group and (group[0].sampling, group[0].prompt) != (sampling, message.prompt):
        return f"prompt: its group is not prompt {message.prompt} of {message.sampling_id!r}"
    others = sampling.submissions.get(message.prompt)
    if others and not group:
        return f"group_id: prompt {message.prompt} is group {others[0].group_id!r}"
    if not sampling.sampler.allows(message.prompt, fresh):
        return f"rollout_ids: {fresh} are not what prompt {message.prompt} wants"
    return ""


def accepted(submission: Submission, now: float) -> None:
    """Count a submission with its sampling."""
    sampling = submission.sampling
    if sampling is not None:
        sampling.sampler.accept(submission.prompt, len(submission.members), now)
        sampling.changed = True


def no_room(books: Books, client_id: str, name: str, why: str, now: float) -> None:
    """End a sampling that can never be given room: samplings hold all of it, and none frees any."""
    sampling = books.samplings.get((client_id, name))
    if sampling is None or any(map(_makes_room, books.samplings.values())):
        return
    ours = (r.submission.sampling is not None for r in books.rollouts.values() if _is_held(r))
    if all(ours):
        sampling.sampler.abort("full", why, now)
        sampling.changed = True


def cancel_all(books: Books, client_id: str, now: float) -> None:
    """End a client's samplings: it has cancelled everything."""
    for sampling in books.samplings.values():
        if sampling.client_id == client_id:
            sampling.sampler.abort("cancelled", "the client cancelled everything", now)
            sampling.changed = True


def new_policy(books: Books, version: int, now: float) -> None:
    """Take up new weights: what has become stale is dealt with as each sampling says."""
    if version == books.policy_version:
        return
    books.policy_version = version
    books.out.append(KeepValue(POLICY, version))
    for sampling in books.samplings.values():
        live = [
            (submission.prompt, member.rollout_id, first)
            for submission in _submissions(sampling)
            for member in submission.members
            if (first := _first_version(member)) is not None
        ]
        sampling.sampler.age(version, live, now)
        sampling.changed = True


def forgotten(submission: Submission) -> None:
    """Let go of a submission whose results are all acknowledged, for long."""
    sampling = submission.sampling
    if sampling is not None:
        left = sampling.submissions[submission.prompt]
        left.remove(submission)
        if not left:
            del sampling.submissions[submission.prompt]


def settle(books: Books, now: float) -> None:
    """Judge what has ended, ask for what capacity is free, and tell the trainers."""
    while books.unjudged:
        rollout = books.unjudged.popleft()
        sampling = rollout.submission.sampling
        if sampling is not None:
            sampling.sampler.end(rollout.submission.prompt, member_of(rollout), now)
            sampling.changed = True
            _carry_out(books, sampling, now)
    for sampling in books.samplings.values():
        if sampling.sampler.decisions:
            _carry_out(books, sampling, now)
    if books.unjudged:
        settle(books, now)
        return
    _ask_for_more(books)
    for sampling in books.samplings.values():
        if sampling.changed:
            _tell(books, sampling, now)


def recovered(books: Books, value: dict[str, object], now: float) -> None:
    """Bring a sampling back from its journalled state; its rollouts follow."""
    client_id, sampling_id = str(value["client_id"]), str(value["sampling_id"])
    state: SamplerState = read_state(value["state"])
    keep = _filter(books, state.spec)
    sampler = Sampler.restored(state, keep, books.policy_version, now)
    books.client(client_id)
    books.samplings[client_id, sampling_id] = LedgerSampling(client_id, sampling_id, sampler)


def resume(books: Books, now: float) -> None:
    """Give the samplers of a journal their rollouts, once all of these are back."""
    for sampling in books.samplings.values():
        sampler = sampling.sampler
        sampler.version = books.policy_version
        for prompt, submissions in sampling.submissions.items():
            members = [member for submission in submissions for member in submission.members]
            ended = [member_of(member) for member in members if member.ended_as]
            sampler.resume(prompt, len(members), ended, now)
        _acknowledge(books, sampling, _taken_before(sampling), now)
        sampler.settle(now)
    books.unjudged.clear()


def member_of(rollout: LedgerRollout) -> Member:
    """Return a rollout that has ended as sampling sees it."""
    assert rollout.ended_as is not None
    usage = rollout.usage
    return Member(
        rollout.rollout_id,
        rollout.ended_as,
        reward_of(rollout, rollout.ended_as),
        rollout.rewards or {},
        usage.turns,
        usage.tokens,
        usage.seconds,
        rollout.policy_version,
    )


def _open(books: Books, client_id: str, message: Sample, now: float) -> LedgerSampling | None:
    spec = message.spec
    wrong = _misfit(books, spec)
    if client_id not in books.clients:
        wrong = "say hello before the first sample"
    elif _was_used(books.clients[client_id], message.sampling_id):
        wrong = "was a sampling's name before: use another, or this after limits.retention_s"
    over: RefusalCode | None = None
    if not wrong:
        wrong, over = _no_room_to_open(books, client_id, spec)
    if wrong:
        _refuse(books, client_id, message, wrong, over)
        return None
    sampler = Sampler(spec, _filter(books, spec), books.policy_version, now)
    sampling = LedgerSampling(client_id, message.sampling_id, sampler)
    books.samplings[client_id, message.sampling_id] = sampling
    return sampling


def _no_room_to_open(books: Books, client_id: str, spec: Spec) -> tuple[str, RefusalCode | None]:
    """Return why a sampling has no room, and what kind of refusal that is; empty if it has.

    What other clients hold beyond their reservations they will give back: it is waited for. What
    the same client holds it may not give back as long as it waits for this one.
    """
    samplings, most = books.samplings.values(), books.rules.rollouts
    reserved = sum(s.reserved for s in samplings)
    excess = sum(max(0, s.held - s.reserved) for s in samplings if s.client_id == client_id)
    if spec.reserved + reserved + excess <= most:
        return "", None
    code: RefusalCode = "full" if spec.reserved + reserved <= most else "invalid"
    others = f" beside {reserved + excess} of other samplings" if reserved else ""
    return f"may hold {spec.reserved}{others}, limits.rollouts {most}", code


def _was_used(client: LedgerClient, name: str) -> bool:
    """Whether rollouts of a closed sampling are remembered, whose ids a new one would repeat."""
    groups = client.submissions.values()
    return any(submission.sampling_id == name for group in groups for submission in group)


def _misfit(books: Books, spec: Spec) -> str:
    keep = books.rules.filters.get(spec.keep)
    if keep is None:
        known = ", ".join(sorted(books.rules.filters))
        return f"keep: {spec.keep!r} is not one of {known}"
    try:
        inspect.signature(keep.keeps).bind((), **spec.keep_args)
    except TypeError as wrong:
        return f"keep_args: {wrong}"
    if spec.needed > spec.group_size:
        return f"members: {spec.members} are more than group_size {spec.group_size}"
    if spec.group_size > books.rules.group:
        return f"group_size: {spec.group_size} is over limits.group {books.rules.group}"
    return ""


def _filter(books: Books, spec: Spec) -> Filter:
    """Return a filter with its arguments; one that the topology has lost ends the sampling."""
    keep = books.rules.filters.get(spec.keep)
    if keep is None:
        return Filter(spec.keep, _lost)
    return Filter(keep.name, keep.keeps, keep.may_keep, spec.keep_args)


def _lost(members: Sequence[Member]) -> bool:
    raise LookupError(f"the topology has it no more, to judge {len(members)} rollouts by")


def _refuse(
    books: Books, client_id: str, message: Sample, why: str, code: RefusalCode | None = None
) -> None:
    books.counts["refused_sampling"] += 1
    code = code or ("invalid" if client_id in books.clients else "hello_first")
    books.tell(client_id, Refusal(message.sampling_id, code, why))


def _submissions(sampling: LedgerSampling) -> Iterable[Submission]:
    return (s for submissions in sampling.submissions.values() for s in submissions)


def _is_held(rollout: LedgerRollout) -> bool:
    return rollout.state != "acked"


def _makes_room(sampling: LedgerSampling) -> bool:
    """Whether its rollouts end, or its trainer acknowledges some, without more room."""
    sampler = sampling.sampler
    judged = (s for prompt in sampler.verdicts for s in sampling.submissions.get(prompt, ()))
    untaken = any(batch.number >= sampler.taken for batch in sampler.sealed)
    return bool(sampler.live or untaken) or any(s.unacked for s in judged)


def _first_version(rollout: LedgerRollout) -> int | None:
    """Return the oldest weights that a rollout under way can have sampled from, if any."""
    if rollout.state not in LIVE or rollout.state == "stopping":
        return None
    if rollout.policy_version is not None:
        return rollout.policy_version
    return rollout.leased_version if rollout.state == "leased" else None


def _acknowledge(
    books: Books, sampling: LedgerSampling, prompts: Iterable[int], now: float
) -> None:
    client = books.clients[sampling.client_id]
    for prompt in prompts:
        for submission in sampling.submissions.get(prompt, ()):
            for member in submission.members:
                if member.result is not None:
                    books.acknowledge(client, member.result.seq, now)
    books.deliver(client)


def _taken_before(sampling: LedgerSampling) -> list[int]:
    """Return the prompts of batches that were taken, whose results a crash left unacknowledged."""
    sampler = sampling.sampler
    untaken = [batch for batch in sampler.sealed if batch.number >= sampler.taken]
    waiting = {prompt for batch in untaken for prompt in batch.prompts} | set(sampler.verdicts)
    return [p for p in sampling.submissions if sampler.is_decided(p) and p not in waiting]


def _carry_out(books: Books, sampling: LedgerSampling, now: float) -> None:
    decisions, sampling.sampler.decisions = sampling.sampler.decisions, []
    verdicts = tuple((d.prompt, d.verdict) for d in decisions if isinstance(d, Judge))
    if verdicts:
        sampling.outbox.append(Judged(sampling.sampling_id, verdicts))
    sampling.changed = True
    for decision in decisions:
        match decision:
            case Stop(prompt):
                submissions = sampling.submissions.get(prompt, ())
                targets = [member for s in submissions for member in s.members]
                books.stop(targets, now, "its group is decided")
            case StopStale(rollout_ids):
                targets = [books.rollouts[name] for name in rollout_ids]
                books.stop(targets, now, "stale", "stale")
            case Complete(batch, final):
                sampling.outbox.append(Batch(sampling.sampling_id, batch, final))


def _tell_again(sampling: LedgerSampling) -> None:
    _forget_verdicts(sampling)
    sampler = sampling.sampler
    verdicts = tuple(sampler.verdicts.items())
    if verdicts:
        sampling.outbox.append(Judged(sampling.sampling_id, verdicts))
    for batch in sampler.sealed:
        sampling.outbox.append(Batch(sampling.sampling_id, batch, sampler.is_final(batch)))


def _ask_for_more(books: Books) -> None:
    """Want prompts while slots are free that none was promised, for whoever has the least first."""
    waiting = [s for s in books.samplings.values() if _may_want(books, s)]
    if not waiting:
        return
    used = sum(_used(books, sampling) for sampling in books.samplings.values())
    slots = sum(worker.slots for worker in books.workers.values() if not worker.silent)
    share = slots // len(waiting)  # a source that is slow keeps no more than its share idle
    while waiting and used < slots:
        sampling = min(waiting, key=lambda sampling: _used(books, sampling))
        waiting.remove(sampling)
        promised = _promised(books, sampling)
        if promised and promised >= share:
            continue
        sampling.sampler.want()
        sampling.changed = True
        used += sampling.sampler.spec.group_size
        if _may_want(books, sampling):
            waiting.append(sampling)


def _promised(books: Books, sampling: LedgerSampling) -> int:
    """Return how many rollouts were asked for and may come: none while the trainer is away."""
    if not books.clients[sampling.client_id].connected:
        return 0
    return sampling.sampler.promised * sampling.sampler.spec.group_size


def _used(books: Books, sampling: LedgerSampling) -> int:
    """Return how many rollouts are under way or were asked for."""
    return sampling.sampler.live + _promised(books, sampling)


def _may_want(books: Books, sampling: LedgerSampling) -> bool:
    return books.clients[sampling.client_id].connected and sampling.sampler.room() > 0


def _tell(books: Books, sampling: LedgerSampling, now: float) -> None:
    sampler = sampling.sampler
    sampling.changed = False
    _forget_verdicts(sampling)
    if sampling.kept != sampler.changes:
        _keep(books, sampling, now)
    for message in sampling.outbox:
        books.tell(sampling.client_id, message)
    sampling.outbox.clear()
    refills = sampler.refills()
    wanted = max(sampler.wanted, sampler.accepted)
    if sampling.told != (wanted, refills):
        sampling.told = (wanted, refills)
        news = Wanted(sampling.sampling_id, wanted, sampler.accepted, sampler.taken, refills)
        books.tell(sampling.client_id, news)


def _forget_verdicts(sampling: LedgerSampling) -> None:
    for prompt in list(sampling.sampler.verdicts):
        submissions = sampling.submissions.get(prompt, ())
        if not any(submission.unacked for submission in submissions):
            sampling.sampler.forget(prompt)


def _keep(books: Books, sampling: LedgerSampling, now: float) -> None:
    sampling.kept = sampling.sampler.changes
    state = {
        "client_id": sampling.client_id,
        "sampling_id": sampling.sampling_id,
        "state": sampling.sampler.state(now),
    }
    books.out.append(KeepValue(sampling.key, state))
