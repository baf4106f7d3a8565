"""The books again from the journal's entries, in the order in which they were kept.

What was leased is ready again, but nothing is dispatched until every worker known before has said
hello, or a lease has passed: workers list what they hold and are adopted, so that rollouts in
progress are not started over.
"""

from collections.abc import Callable
from typing import Any

from ..errors import JournalError
from ..typed import compile_decoder
from . import attempts, batches, intake
from .books import Books, Rules, sum_of
from .instructions import WORKERS, Acked, AttemptFailed, Ended, Rewound, StageDone, Submitted
from .rollouts import LedgerRollout

_KINDS: tuple[type[Any], ...] = (Submitted, StageDone, AttemptFailed, Ended, Acked, Rewound)
ENTRIES: dict[str, Callable[[Any], Any]] = {kind.__name__: compile_decoder(kind) for kind in _KINDS}


class Recovery:
    """Feed it every value, then every entry, then `finish`."""

    def __init__(self, rules: Rules, broker_id: str, now: float) -> None:
        self.books = Books(rules, broker_id)
        self._now = now
        self._by_order: dict[int, LedgerRollout] = {}
        self._names = [stage.name for stage in rules.stages]
        self._first_seq = 1
        self._over: dict[int, LedgerRollout] = {}  # the last stage is kept, the end not yet

    def entry(self, order: int, entry: Any) -> None:
        """Apply one journal entry.

        Raises: JournalError if it speaks of a stage that the topology no longer has.
        """
        if isinstance(entry, Submitted):
            submission = intake.book_submission(self.books, entry, order)
            submission.closed = bool(entry.sampling_id) and submission.sampling is None
            for rollout in submission.members:
                rollout.accepted_at = rollout.since = min(entry.at, self._now)
                self._by_order[rollout.order] = rollout
            return
        rollout = self._by_order[order]
        match entry:
            case StageDone():
                self._stage_done(rollout, entry)
            case AttemptFailed(failure, counted):
                rollout.failures = (*rollout.failures, failure)[-attempts.KEPT_FAILURES :]
                rollout.failed += counted
                rollout.deaths += not counted
                rollout.attempt = rollout.seen = max(rollout.seen, failure.attempt)
            case Ended(result):
                self._ended(rollout, result)
            case Acked():
                self._acked(rollout)
            case Rewound(lost):
                attempts.rewind(self.books, rollout, self._now, "recovered")
                rollout.losses += lost
                self.books.unqueue(rollout)

    def value(self, key: str, value: Any) -> None:
        """Apply one value kept under a key."""
        if key == WORKERS:
            self.books.expected = set(value)
        elif key == intake.FIRST_SEQ:
            self._first_seq = value
        elif key.startswith("client "):
            client = self.books.client(key.removeprefix("client "))
            client.next_seq = max(client.next_seq, value)
        elif key == batches.POLICY:
            self.books.policy_version = value
        elif key.startswith(batches.PREFIX):
            batches.recovered(self.books, value, self._now)

    def finish(self) -> None:
        """Queue what is unfinished, and give workers the time of a lease to be adopted.

        An end that a crash cut off from its last stage is kept with the first event's instructions.
        """
        books = self.books
        books.out.clear()
        for rollout in self._over.values():
            books.end(rollout, rollout.outcome or "completed", self._now)
        batches.close_again(books, self._now)
        batches.resume(books, self._now)
        live = [rollout for rollout in books.rollouts.values() if rollout.state == "ready"]
        for rollout in sorted(live, key=lambda rollout: rollout.since):
            books.enqueue(rollout)
        books.first_seq = max(books.first_seq, self._first_seq)
        for client in books.clients.values():
            client.heard_at = self._now
            if not client.unacked:  # what was left of it may not tell its last number
                client.next_seq = max(client.next_seq, self._first_seq)
        books.recover_until = self._now + books.rules.lease_s
        books.counts["recovered"] = len(live)

    def _stage_done(self, rollout: LedgerRollout, entry: StageDone) -> None:
        if entry.stage not in self._names:
            raise JournalError(
                f"the journal has a result of stage {entry.stage!r}, which the topology lacks: "
                f"restore the stage, or start in a new run_dir"
            )
        rollout.stage = self._names.index(entry.stage)
        rollout.attempt = entry.attempt
        if attempts.apply_stage(self.books, rollout, entry):
            self._over[rollout.order] = rollout
        else:
            rollout.stage += 1

    def _ended(self, rollout: LedgerRollout, result: Any) -> None:
        books = self.books
        self._over.pop(rollout.order, None)
        books.pin(rollout, "")
        rollout.step("end", self._now, "recovered")
        rollout.ended_as = result.outcome
        if result.receipt is not None:
            rollout.usage = sum_of(rollout.usage, result.receipt.usage)
        rollout.result = result
        client = books.clients[rollout.submission.client_id]
        client.ended[result.seq] = rollout
        client.pending.append(result.seq)
        client.next_seq = max(client.next_seq, result.seq + 1)
        books.counts[result.outcome] += 1

    def _acked(self, rollout: LedgerRollout) -> None:
        assert rollout.result is not None
        client = self.books.clients[rollout.submission.client_id]
        self.books.acknowledge(client, rollout.result.seq, self._now)
