"""The ledger's whole state, and the few moves that every rule is made of.

Each move keeps the indexes (queues, counts, credit, deliveries) true; `checks.validate` proves it.
Instructions gather in `out`. Nothing here decides: the rules are in intake.py and attempts.py.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappush
from typing import Literal

from ..figures import Histogram
from ..messages import Cancelled, Credit, Message, Result
from ..records import Outcome, Receipt, Usage
from ..sampling import FILTERS, Filter
from .instructions import Acked, Deliver, Ended, FreeBody, Instruction, Keep, StopAttempts, Tell
from .queues import FairQueue
from .rollouts import LedgerClient, LedgerRollout, LedgerSampling, LedgerWorker, PendingCancel
from .rooms import Rooms

ISOLATE_AFTER = 2  # unexplained ends of a worker until a rollout that was there runs alone
ISOLATED = -1  # a ticket for the line of those that run alone
TRAINABLE = frozenset({"completed", "truncated", "agent_timeout"})


@dataclass(frozen=True, slots=True)
class StageRule:
    """What the ledger must know of a stage."""

    name: str
    attempts: int
    ready: int  # rollouts that may wait for it, per host
    timeout_s: float = 0.0  # of one attempt, for status


@dataclass(frozen=True, slots=True)
class Rules:
    """Every bound and time that the ledger decides by; bytes and seconds."""

    stages: tuple[StageRule, ...]
    heartbeat_s: float
    lease_s: float
    retry_delay_s: float
    retention_s: float
    rollouts: int
    bytes: int
    message_bytes: int
    group: int
    client_window: int
    client_bytes: int
    filters: Mapping[str, Filter] = field(default_factory=lambda: FILTERS)
    first_seq: int = 1  # where nothing is kept, later at every start: numbers never come again
    cancel_grace_s: float = 0.0

    @property
    def stop_s(self) -> float:
        """How long a cancelled attempt may take to say what it spent.

        A heartbeat to hear of it if the broadcast was lost, its grace, and a heartbeat's time to
        answer; no less than any other lease.
        """
        return max(self.lease_s, 2 * self.heartbeat_s + self.cancel_grace_s)


@dataclass(slots=True, eq=False)
class StageFigures:
    """What was counted of a stage since the start, and who is there but neither ready nor leased.

    queue_wait: from ready to dispatched; duration: from dispatched to committed.
    """

    dispatched: int = 0
    done: int = 0
    failed: int = 0
    queue_wait: Histogram = field(default_factory=Histogram)
    duration: Histogram = field(default_factory=Histogram)
    delayed: dict[int, LedgerRollout] = field(default_factory=dict)  # by order, the longest first
    stopping: dict[int, LedgerRollout] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Books:
    """Everything that the broker knows."""

    rules: Rules
    broker_id: str
    recover_until: float = 0.0
    next_order: int = 1
    first_seq: int = 1  # of a client without books: above every number of those forgotten
    held_rollouts: int = 0  # accepted and not acknowledged
    held_bytes: int = 0
    rollouts: dict[str, LedgerRollout] = field(default_factory=dict)
    clients: dict[str, LedgerClient] = field(default_factory=dict)
    workers: dict[str, LedgerWorker] = field(default_factory=dict)
    rooms: Rooms = field(default_factory=Rooms)  # which workers have credit left
    expected: set[str] = field(default_factory=set)  # workers known before a restart
    queues: dict[tuple[int, str], FairQueue] = field(default_factory=dict)
    queued_hosts: dict[int, list[str]] = field(default_factory=dict)  # that have a queue, by stage
    isolated: dict[int, deque[LedgerRollout]] = field(default_factory=dict)
    reserved: dict[int, LedgerWorker] = field(default_factory=dict)  # by stage
    running: Counter[tuple[int, str]] = field(default_factory=Counter)
    delayed: list[tuple[float, int, LedgerRollout]] = field(default_factory=list)
    acked: deque[tuple[float, LedgerRollout]] = field(default_factory=deque)
    cancels: dict[tuple[str, str], PendingCancel] = field(default_factory=dict)
    post_seen: dict[tuple[str, int], float] = field(default_factory=dict)  # a host's stage
    pinned: dict[str, dict[str, LedgerRollout]] = field(default_factory=dict)
    policy_version: int = 0
    samplings: dict[tuple[str, str], LedgerSampling] = field(default_factory=dict)
    unjudged: deque[LedgerRollout] = field(default_factory=deque)  # ended, of a sampling
    dirty: set[int] = field(default_factory=set)  # stages where something may be dispatched
    figures: list[StageFigures] = field(default_factory=list)  # by stage
    counts: Counter[str] = field(default_factory=Counter)
    out: list[Instruction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first_seq = max(self.first_seq, self.rules.first_seq)
        self.figures = [StageFigures() for _ in self.rules.stages]

    def go_by(self, rules: Rules) -> None:
        """Decide by other rules from now on, for the same stages in the same order."""
        self.rules = rules
        self.dirty.update(range(len(rules.stages)))
        self.offer_credit()
        for client in self.clients.values():
            self.deliver(client)

    def stage_name(self, rollout: LedgerRollout) -> str:
        """Name the stage that a rollout has reached."""
        return self.rules.stages[rollout.stage].name

    def client(self, client_id: str) -> LedgerClient:
        """Return the books on a client, opened if there are none."""
        found = self.clients.get(client_id)
        if found is None:
            found = LedgerClient(client_id, self.first_seq, self.first_seq)
            self.clients[client_id] = found
        return found

    def tell(self, client_id: str, message: Message) -> None:
        """Send a message to a trainer."""
        self.out.append(Tell(client_id, message))

    def queue(self, stage: int, host: str) -> FairQueue:
        """Return the queue of a stage for one host; host "" is any."""
        found = self.queues.get((stage, host))
        if found is None:
            found = self.queues[stage, host] = FairQueue()
            self.queued_hosts.setdefault(stage, []).append(host)
        return found

    def queued(self, stage: int, host: str) -> int:
        """Return how many rollouts wait for a stage on one host; host "" is any."""
        return len(self.queues.get((stage, host), ()))

    def enqueue(self, rollout: LedgerRollout) -> None:
        """Put a ready rollout where its stage will find it."""
        if rollout.deaths >= ISOLATE_AFTER:
            rollout.ticket = ISOLATED
            self.isolated.setdefault(rollout.stage, deque()).append(rollout)
        else:
            self.queue(rollout.stage, rollout.host).push(rollout)
        self.dirty.add(rollout.stage)

    def unqueue(self, rollout: LedgerRollout) -> None:
        """Take a rollout out of where it waits, if it does: a queue, a delay, a stop."""
        if rollout.state == "delayed":
            self.figures[rollout.stage].delayed.pop(rollout.order, None)
        elif rollout.state == "stopping":
            self.figures[rollout.stage].stopping.pop(rollout.order, None)
        if rollout.ticket == ISOLATED:
            self.isolated[rollout.stage].remove(rollout)
            rollout.ticket = 0
        elif rollout.ticket:
            self.queue(rollout.stage, rollout.host).discard(rollout)
        self._has_room(rollout.stage)

    def lease(self, rollout: LedgerRollout, worker: LedgerWorker, now: float) -> None:
        """Book a rollout on a worker; it is leased already."""
        rollout.worker_id = worker.worker_id
        rollout.confirmed = False
        rollout.deadline = now + self.rules.lease_s
        rollout.dispatched_at = now
        rollout.leased_version = self.policy_version
        worker.leases[rollout.rollout_id] = rollout
        worker.used_bytes += self.input_bytes(rollout)
        worker.used_at = now
        self.rooms.changed(worker)
        self.running[rollout.stage, worker.host] += 1

    def unlease(self, rollout: LedgerRollout) -> None:
        """Give a lease's credit back; call it before the state changes."""
        worker = self.workers.get(rollout.worker_id)
        if worker is None or worker.leases.pop(rollout.rollout_id, None) is None:
            return
        worker.used_bytes -= self.input_bytes(rollout)
        worker.alone = False
        self.rooms.changed(worker)
        self.running[rollout.stage, worker.host] -= 1
        self._has_room(rollout.stage)

    def credit_changed(self, worker: LedgerWorker) -> None:
        """Look again at what a worker may be given: its credit or its state is another one."""
        self.rooms.changed(worker)
        self.dirty.add(worker.stage)

    def _has_room(self, stage: int) -> None:
        self.dirty.add(stage)
        if stage:
            self.dirty.add(stage - 1)

    def input_bytes(self, rollout: LedgerRollout) -> int:
        """Return the size of what the next stage is sent."""
        return rollout.submission.body_bytes + rollout.size_bytes

    def pin(self, rollout: LedgerRollout, host: str) -> None:
        """Bind a rollout to a host, or free it from one with ""."""
        if rollout.host:
            self.pinned[rollout.host].pop(rollout.rollout_id, None)
        rollout.host = host
        if host:
            self.pinned.setdefault(host, {})[rollout.rollout_id] = rollout

    def release(self, rollout: LedgerRollout, now: float, why: str) -> None:
        """Put a leased rollout back in the queue; it is not to blame."""
        self.unlease(rollout)
        rollout.step("release", now, why)
        self.counts["released"] += 1
        self.enqueue(rollout)

    def delay(self, rollout: LedgerRollout, now: float, why: str) -> None:
        """Let a leased rollout wait before its next attempt; the wait doubles each time."""
        self.unlease(rollout)
        rollout.step("delay", now, why)
        self.figures[rollout.stage].delayed[rollout.order] = rollout
        due = now + self.rules.retry_delay_s * 2 ** (rollout.failed - 1)
        heappush(self.delayed, (due, rollout.order, rollout))

    def end(
        self, rollout: LedgerRollout, outcome: Outcome, now: float, receipt: Receipt | None = None
    ) -> None:
        """End a live rollout and hand its result to its client."""
        self.unqueue(rollout)
        self.unlease(rollout)
        rollout.step("end", now, outcome)
        rollout.ended_as = outcome
        self.pin(rollout, "")
        client = self.clients[rollout.submission.client_id]
        rollout.result = _result(rollout, outcome, client.next_seq, now, receipt)
        client.ended[client.next_seq] = rollout
        client.pending.append(client.next_seq)
        client.next_seq += 1
        self.counts[outcome] += 1
        if rollout.submission.sampling is not None:
            self.unjudged.append(rollout)
        self.out.append(Keep(rollout.order, Ended(rollout.result)))
        if rollout.submission.closed:
            self.acknowledge(client, rollout.result.seq, now)
            self.offer_credit()
        else:
            self.deliver(client)
        self.report_cancelled(rollout, receipt)

    def end_cancelled(self, rollout: LedgerRollout, usage: Usage, now: float) -> None:
        """End a rollout as cancelled or stale; `usage` is what its worker says it had spent."""
        running = rollout.state == "stopping"
        rollout.usage = sum_of(rollout.usage, usage)
        began = running or rollout.attempt > 0
        stage = self.stage_name(rollout) if began else ""
        receipt = Receipt(rollout.rollout_id, stage, running, usage)
        self.end(rollout, rollout.stopped_as, now, receipt)

    def stop(
        self,
        rollouts: Iterable[LedgerRollout],
        now: float,
        why: str,
        outcome: Literal["cancelled", "stale"] = "cancelled",
    ) -> None:
        """End rollouts that wait, at once, and have those stopped that a worker is at."""
        leased = []
        for rollout in rollouts:
            if rollout.state == "leased":
                rollout.step("stop", now, why)
                rollout.stopped_as = outcome
                rollout.deadline = now + self.rules.stop_s
                self.figures[rollout.stage].stopping[rollout.order] = rollout
                leased.append(rollout)
            elif rollout.state in {"ready", "delayed"}:
                rollout.stopped_as = outcome
                self.end_cancelled(rollout, Usage(), now)
        self.stop_attempts(leased)

    def deliver(self, client: LedgerClient) -> None:
        """Send what the client's window allows, in results and in bytes; one fits always."""
        while client.connected and client.pending and len(client.delivered) < client.window:
            rollout = client.ended[client.pending[0]]
            size = client.delivered_bytes + rollout.size_bytes
            if client.delivered and size > self.rules.client_bytes:
                return
            client.delivered.add(client.pending.popleft())
            client.delivered_bytes = size
            assert rollout.result is not None
            self.out.append(Deliver(client.client_id, rollout.order, rollout.result))

    def acknowledge(self, client: LedgerClient, seq: int, now: float) -> None:
        """Close the books on a result that the trainer has; keep its id for the retention time."""
        rollout = client.ended.pop(seq)
        if seq in client.delivered:
            client.delivered.remove(seq)
            client.delivered_bytes -= rollout.size_bytes
        elif seq in client.held:
            client.held.remove(seq)
        else:
            client.pending.remove(seq)
        rollout.step("ack", now)
        self.out.append(Keep(rollout.order, Acked()))
        submission = rollout.submission
        submission.unacked -= 1
        if submission.sampling is not None:
            submission.sampling.held -= 1
        client.unacked -= 1
        client.acked += 1
        self.held_rollouts -= 1
        self.held_bytes -= rollout.size_bytes
        self.out.append(FreeBody(rollout.order))
        if not submission.unacked:
            self.held_bytes -= submission.body_bytes
            self.out.append(FreeBody(submission.order))
        rollout.result = None
        self.acked.append((now, rollout))

    def offer_credit(self) -> None:
        """Tell clients that were refused as full how much would be taken now."""
        room_bytes = self.rules.bytes - self.held_bytes
        if room_bytes <= 0:
            return
        for client in self.clients.values():
            if client.waits_for_credit and client.connected:
                rollouts = self.room([s for s in self.samplings.values() if not s.is_of(client)])
                if rollouts > 0:
                    client.waits_for_credit = False
                    self.tell(client.client_id, Credit(rollouts, room_bytes))

    def room(self, others: Iterable[LedgerSampling]) -> int:
        """Return how many more rollouts may be held while these samplings keep what is theirs."""
        kept_free = sum(sampling.kept_free for sampling in others)
        return self.rules.rollouts - self.held_rollouts - kept_free

    def hold(self, client: LedgerClient, seq: int) -> None:
        """Note that the trainer has a result and keeps it; it stays owed until acknowledged."""
        if seq in client.delivered:
            client.delivered.remove(seq)
            client.delivered_bytes -= client.ended[seq].size_bytes
            client.held.add(seq)

    def report_cancelled(self, rollout: LedgerRollout, receipt: Receipt | None) -> None:
        """Tell every cancel that waited for this rollout that it is over."""
        for key in rollout.cancels:
            cancel = self.cancels.get(key)
            if cancel is None:
                continue
            cancel.waiting.discard(rollout.rollout_id)
            if receipt is not None:
                cancel.receipts.append(receipt)
            else:
                cancel.ended.append(rollout.rollout_id)
            if not cancel.waiting:
                self.answer_cancel(cancel)
        rollout.cancels = ()

    def answer_cancel(self, cancel: PendingCancel) -> None:
        """Send a cancel's answer."""
        self.cancels.pop((cancel.client_id, cancel.cancel_id), None)
        receipts, ended, unknown = (
            tuple(cancel.receipts),
            tuple(dict.fromkeys(cancel.ended)),
            tuple(dict.fromkeys(cancel.unknown)),
        )
        self.tell(cancel.client_id, Cancelled(cancel.cancel_id, receipts, ended, unknown))

    def stop_attempts(self, rollouts: Iterable[LedgerRollout]) -> None:
        """Broadcast that the current attempts of these rollouts are not wanted."""
        held = tuple((rollout.rollout_id, rollout.attempt) for rollout in rollouts)
        if held:
            self.out.append(StopAttempts(held))


def sum_of(one: Usage, other: Usage) -> Usage:
    """Return what two spans of work have spent together."""
    return Usage(one.turns + other.turns, one.tokens + other.tokens, one.seconds + other.seconds)


def reward_of(rollout: LedgerRollout, outcome: Outcome) -> float | None:
    """Return the reward that an outcome leaves a rollout; never one for a failure."""
    if outcome == "agent_timeout" and rollout.reward is None:
        return 0.0
    return rollout.reward if outcome in TRAINABLE else None


def _result(
    rollout: LedgerRollout, outcome: Outcome, seq: int, now: float, receipt: Receipt | None
) -> Result:
    evaluated = outcome in TRAINABLE
    reward = reward_of(rollout, outcome)
    trainable = evaluated and reward is not None and rollout.trainable is not False
    submission = rollout.submission
    return Result(
        seq=seq,
        rollout_id=rollout.rollout_id,
        group_id=submission.group_id,
        group_size=submission.group_size,
        task_id=submission.task_id,
        outcome=outcome,
        reward=reward,
        rewards=(rollout.rewards or {}) if evaluated else {},
        trainable=trainable,
        failures=rollout.failures,
        timings=rollout.timings,
        total_s=max(0.0, now - rollout.accepted_at),
        receipt=receipt,
        policy_version=rollout.policy_version,
        sampling_id=submission.sampling.sampling_id if submission.sampling else "",
        prompt=submission.prompt,
    )
