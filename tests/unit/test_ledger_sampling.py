"""Samplings in the ledger: credit, what is told and kept, acknowledging, closing, restarts."""

from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import replace as changed

from engine.ledger import (
    Acked,
    ForgetValue,
    FromTrainer,
    KeepValue,
    NewPolicy,
    StopAttempts,
    TrainerGone,
)
from engine.messages import (
    Accepted,
    Batch,
    Credit,
    EndSample,
    Judged,
    Refusal,
    Result,
    Sample,
    Submit,
    Wanted,
)
from engine.sampling import FILTERS, Spec

from ..ledger_kit import RULES, Driver, buffers

ONE_STAGE = replace(RULES, stages=(replace(RULES.stages[0], name="run", attempts=1),))


class Trainer(Driver):
    """A driver that samples, with one worker of a single stage."""

    def __init__(self, slots: int = 4, client: str = "trainer", **rules: Any) -> None:
        super().__init__(replace(ONE_STAGE, **rules))
        self.spec = Spec(1, 2)
        self.client(client)
        if slots:
            self.worker("w", "run", slots=slots)

    def sample(self, name: str = "s", client: str = "trainer", **changes: Any) -> list[Wanted]:
        """Say `sample`; return what is wanted."""
        fields = {key: changes.pop(key) for key in list(changes) if key in Sample.__slots__}
        spec = changed(self.spec, **changes)
        self.handle(FromTrainer(client, Sample(name, spec, **fields)))
        return self.told(Wanted)

    def prompt(
        self,
        *prompts: int,
        name: str = "s",
        client: str = "trainer",
        rollouts: range = range(2),
        group: str = "",
    ) -> None:
        """Submit these prompts."""
        for prompt in prompts:
            where = group or f"{name}-{prompt}"
            names = tuple(f"{where}-{member}" for member in rollouts)
            message = Submit(f"submit {names}", where, "t", "kind", names, buffers(10), 2)
            message = changed(message, sampling_id=name, prompt=prompt)
            self.handle(FromTrainer(client, message, 10))

    def ends(self, *names: str, reward: float | None = None, **fields: Any) -> None:
        """Let the worker finish these rollouts; by default every second one has a reward of 1."""
        for name in names:
            held = [d for d in self.dispatched if d.rollout_id == name][-1]
            found = float(int(name[-1]) % 2) if reward is None else reward
            self.result(held.worker_id, name, held.attempt, reward=found, **fields)

    def all(self, kind: type[Any]) -> list[Any]:
        return self.told(kind)

    def sampler(self, name: str = "s", client: str = "trainer") -> Any:
        return self.ledger._books.samplings[client, name].sampler


# Opening


def test_a_sampling_opens_with_what_the_workers_take() -> None:
    trainer = Trainer(slots=4)
    assert trainer.sample() == [Wanted("s", 2, 0, 0)]
    assert [value.key for value in trainer.only(KeepValue)] == ["sampling trainer s"]
    assert trainer.sample() == [Wanted("s", 2, 0, 0)], "a repeat is answered and changes nothing"
    assert trainer.only(KeepValue) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"keep": "nonsense"}, "is not one of all, dapo, reward-bounds"),
        ({"keep_args": {"low": 1.0}}, "keep_args: "),
        ({"members": 3}, "members: 3 are more than group_size 2"),
        ({"group_size": 17}, "group_size: 17 is over limits.group 16"),
        ({"groups": 50}, "may hold 102, limits.rollouts 100"),
        ({"groups": 10, "ahead": 4}, "may hold 102, limits.rollouts 100"),
    ],
)
def test_a_sampling_that_cannot_be_is_refused(changes: dict[str, Any], why: str) -> None:
    trainer = Trainer()
    assert trainer.sample(**changes) == []
    [refusal] = trainer.told(Refusal)
    assert (refusal.submit_id, refusal.code) == ("s", "invalid")
    assert why in refusal.message


def test_a_sampling_with_another_spec_is_refused() -> None:
    trainer = Trainer()
    trainer.sample()
    assert trainer.sample(groups=2) == []
    assert "is open with another spec" in trainer.told(Refusal)[0].message


# Credit


def test_credit_comes_as_slots_become_free() -> None:
    trainer = Trainer(slots=4)
    trainer.sample(groups=3)
    trainer.prompt(0)
    assert trainer.told(Wanted) == []
    trainer.prompt(1)
    assert trainer.told(Wanted) == []
    trainer.ends("s-0-0")
    assert trainer.told(Wanted) == [Wanted("s", 3, 2, 0)]
    trainer.ends("s-0-1")
    assert trainer.told(Wanted) == []
    trainer.credit("w", 8)
    assert trainer.told(Wanted)[0].prompts == 5


def test_credit_goes_to_the_sampling_with_the_least_under_way() -> None:
    trainer = Trainer(slots=0)
    trainer.sample("a")
    trainer.sample("b")
    trainer.worker("w", "run", slots=8)
    assert [(each.sampling_id, each.prompts) for each in trainer.told(Wanted)] == [
        ("a", 2),
        ("b", 2),
    ]
    trainer.prompt(0, 1, name="a")
    trainer.prompt(0, 1, name="b")
    trainer.ends("b-0-0", "b-0-1", reward=1.0)
    assert (trainer.sampler("a").wanted, trainer.sampler("b").wanted) == (2, 3)


def test_what_was_promised_to_a_trainer_that_is_away_goes_to_others() -> None:
    trainer = Trainer(slots=4)
    trainer.sample("a")
    trainer.client("other")
    assert trainer.sample("b", client="other") == [Wanted("b", 0, 0, 0)]
    trainer.handle(TrainerGone("trainer"))
    assert trainer.told(Wanted) == [Wanted("b", 2, 0, 0)]


def test_a_source_that_gives_nothing_keeps_no_more_than_its_share() -> None:
    trainer = Trainer(slots=8)
    trainer.sample("slow", groups=9)
    trainer.prompt(0, 1, 2, 3, name="slow")
    trainer.sample("quick", groups=35)
    quick = 0
    for prompt in range(4):
        trainer.ends(f"slow-{prompt}-0", f"slow-{prompt}-1")
    for _ in range(10):
        wanted = trainer.sampler("quick").wanted
        while quick < wanted:
            trainer.prompt(quick, name="quick")
            trainer.ends(f"quick-{quick}-0", f"quick-{quick}-1")
            quick += 1
    assert trainer.sampler("slow").promised == 2
    assert quick > 4


def test_what_a_source_that_ended_still_owed_goes_to_others() -> None:
    trainer = Trainer(slots=4)
    trainer.sample("a")
    trainer.sample("b")
    assert trainer.sampler("b").wanted == 0
    trainer.sample("a", source="ended", given=0, why="no more")
    assert trainer.sampler("b").wanted == 2


# Batches


def test_a_batch_is_told_after_its_state_is_kept() -> None:
    trainer = Trainer()
    trainer.sample()
    trainer.prompt(0)
    trainer.ends("s-0-0")
    trainer.ends("s-0-1")
    [told] = trainer.told(Batch)
    assert (told.batch.prompts, told.final) == ((0,), True)
    kinds = [type(getattr(i, "message", i)).__name__ for i in trainer.last]
    assert kinds.index("KeepValue") < kinds.index("Batch")


def test_the_rest_is_cancelled_at_the_last_informative_group() -> None:
    trainer = Trainer()
    trainer.sample()
    trainer.prompt(0, 1)
    trainer.ends("s-0-0", "s-0-1")
    assert trainer.told(Judged) == [Judged("s", ((1, "cancelled"),))]
    assert trainer.only(StopAttempts) == [StopAttempts((("s-1-0", 1), ("s-1-1", 1)))]
    assert not trainer.told(Batch)[0].final
    trainer.ends("s-1-0", "s-1-1", status="cancelled")
    [told] = trainer.told(Batch)
    assert (told.final, told.batch.report.cancelled.rollouts) == (True, 2)
    assert trainer.sampler().live == 0


def test_a_batch_that_is_taken_is_acknowledged_and_the_next_one_fills() -> None:
    trainer = Trainer(slots=2)
    trainer.sample()
    trainer.prompt(0)
    trainer.ends("s-0-0", "s-0-1")
    assert trainer.sampler().room() == 0
    [wanted] = trainer.sample(taken=1)
    assert (wanted.prompts, wanted.taken) == (2, 1)
    assert len(trainer.entries(Acked)) == 2
    assert trainer.ledger._books.held_rollouts == 0
    trainer.sample(taken=0)
    assert trainer.sampler().taken == 1, "an older message takes nothing back"


@pytest.mark.parametrize("rows", range(4))
def test_a_crash_while_a_batch_is_taken_leaves_none_without_its_results(rows: int) -> None:
    trainer = Trainer()
    trainer.sample()
    trainer.prompt(0)
    trainer.ends("s-0-0", "s-0-1")
    before = len(trainer.journal.changes)
    trainer.sample(taken=1)
    trainer.journal.crash(before + rows)
    trainer.restart()
    trainer.client()
    [wanted] = trainer.sample(again=True)
    assert (wanted.taken, len(trainer.told(Batch))) == ((1, 0) if rows else (0, 1))
    assert trainer.ledger._books.held_rollouts == (0 if rows else 2)


def test_taking_a_batch_offers_credit_to_those_that_were_refused() -> None:
    trainer = Trainer(rollouts=4)
    trainer.sample()
    trainer.prompt(0)
    trainer.ends("s-0-0", "s-0-1")
    trainer.submit("a", "b", "c")
    assert trainer.told(Refusal)[0].code == "full"
    trainer.sample(taken=1)
    assert trainer.told(Credit)[0].rollouts == 4


def test_again_tells_every_verdict_and_batch_that_may_be_unknown() -> None:
    trainer = Trainer()
    trainer.sample(ahead=1)
    trainer.prompt(0, 1)
    trainer.ends("s-0-0", "s-0-1", reward=1.0)
    trainer.ends("s-1-0", "s-1-1")
    trainer.client()
    trainer.sample(ahead=1, again=True)
    assert trainer.told(Judged) == [Judged("s", ((0, "dropped"),))]
    assert [each.batch.number for each in trainer.told(Batch)] == [0]
    trainer.ack((1, 2))
    trainer.sample(ahead=1, again=True, taken=1)
    assert trainer.told(Judged) == []
    trainer.sample(ahead=1, again=True, taken=1)
    assert trainer.told(Batch) == []


# Submits


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ({"name": "other"}, "'other' is not open"),
        ({"rollouts": range(3)}, "3 are not what prompt 1 wants"),
        ({"rollouts": range(1)}, "1 are not what prompt 1 wants"),
        ({"group": "s-0", "rollouts": range(5, 7)}, "its group is not prompt 1"),
        ({"group": "plain"}, "its group is not prompt 1"),
    ],
)
def test_a_submit_that_does_not_fit_is_refused(what: dict[str, Any], why: str) -> None:
    trainer = Trainer()
    trainer.sample()
    trainer.prompt(0)
    trainer.submit("p-0", group="plain")
    trainer.prompt(1, **what)
    [refusal] = trainer.told(Refusal)
    assert refusal.code == "invalid"
    assert why in refusal.message


def test_a_second_group_for_a_prompt_is_refused() -> None:
    trainer = Trainer()
    trainer.sample()
    trainer.prompt(0)
    trainer.prompt(0, group="again")
    assert "prompt 0 is group 's-0'" in trainer.told(Refusal)[0].message


def test_a_submit_that_is_repeated_is_accepted_and_counted_once() -> None:
    trainer = Trainer()
    trainer.sample()
    trainer.prompt(0)
    trainer.prompt(0)
    assert trainer.told(Accepted)[0].repeated == ("s-0-0", "s-0-1")
    assert trainer.sampler().live == 2
    trainer.handle(FromTrainer("trainer", EndSample("s")))
    trainer.prompt(0)
    assert len(trainer.told(Accepted)) == 1, "also once the sampling is closed"


def test_a_sampling_waits_for_room_that_its_trainer_will_make() -> None:
    trainer = Trainer(rollouts=4)
    trainer.sample()
    trainer.prompt(0, 1)
    trainer.ends("s-0-0", "s-0-1", "s-1-0", "s-1-1", reward=1.0)
    trainer.prompt(2)
    assert trainer.told(Refusal)[0].code == "full"
    assert not trainer.sampler().is_over
    trainer.ack((1, 2))
    trainer.prompt(2)
    assert len(trainer.told(Accepted)) == 1


def test_a_sampling_that_nobody_can_make_room_for_ends_with_a_reason() -> None:
    trainer = Trainer(rollouts=6)
    trainer.sample(groups=2, staleness="refill", bound=0)
    trainer.prompt(0, 1)
    trainer.ends("s-0-0", "s-1-0", "s-0-1", policy_version=0)
    trainer.handle(NewPolicy(1))
    assert trainer.told(Wanted)[0].refills == ((0, 4), (1, 4))
    trainer.prompt(0, rollouts=range(2, 4))
    trainer.ends("s-0-2", "s-0-3", policy_version=1)
    trainer.ends("s-1-1", status="cancelled")
    trainer.prompt(1, rollouts=range(2, 4))
    [batch] = [each.batch for each in trainer.told(Batch)]
    assert (batch.reason, batch.last, batch.prompts) == ("full", True, (0,))
    assert "limits.rollouts 6" in batch.why


# Cancel, versions


def test_cancelling_everything_ends_the_clients_samplings() -> None:
    trainer = Trainer()
    trainer.sample()
    trainer.prompt(0, 1)
    trainer.ends("s-0-0")
    trainer.cancel(everything=True)
    [batch] = [each.batch for each in trainer.told(Batch)]
    assert (batch.reason, batch.last, batch.prompts) == ("cancelled", True, ())
    trainer.ends("s-0-1", "s-1-0", "s-1-1", status="cancelled")
    [final] = trainer.told(Batch)
    assert (final.final, final.batch.report.cancelled.rollouts) == (True, 4)


def test_a_cancelled_member_fails_its_group() -> None:
    trainer = Trainer()
    trainer.sample()
    trainer.prompt(0)
    trainer.cancel("s-0-0")
    trainer.ends("s-0-0", status="cancelled")
    assert trainer.told(Judged) == [Judged("s", ((0, "failed"),))]


def test_new_weights_stop_what_is_stale() -> None:
    trainer = Trainer()
    trainer.sample(staleness="refill", bound=0)
    trainer.prompt(0)
    trainer.handle(NewPolicy(1))
    assert trainer.only(StopAttempts) == [StopAttempts((("s-0-0", 1), ("s-0-1", 1)))]
    assert trainer.told(Wanted)[0].refills == ((0, 4),)
    trainer.handle(NewPolicy(1))
    assert trainer.last == []
    trainer.prompt(0, rollouts=range(2, 4))
    trainer.ends("s-0-0", "s-0-1", status="cancelled")
    results = [i.result for i in trainer.last if isinstance(getattr(i, "result", None), Result)]
    assert [(each.outcome, each.reward) for each in results] == [("stale", None)]
    trainer.ends("s-0-2", "s-0-3", policy_version=1)
    [told] = trainer.told(Batch)
    assert told.batch.left_out == ("s-0-0", "s-0-1")


# Closing


def test_closing_cancels_and_acknowledges_everything() -> None:
    trainer = Trainer(slots=2)
    trainer.sample(groups=3, ahead=1)
    trainer.prompt(0, 1)
    trainer.ends("s-0-0")
    trainer.handle(FromTrainer("trainer", EndSample("s")))
    assert [gone.key for gone in trainer.only(ForgetValue)] == ["sampling trainer s"]
    assert trainer.ledger._books.held_rollouts == 2
    trainer.ends("s-0-1", "s-1-0", status="cancelled")
    assert trainer.ledger._books.held_rollouts == 0
    assert not [i for i in trainer.last if hasattr(i, "result")], "nobody waits for it"
    trainer.handle(FromTrainer("trainer", EndSample("s")))
    assert trainer.last == []


def test_a_closed_sampling_stays_closed_over_a_restart() -> None:
    trainer = Trainer()
    trainer.sample()
    trainer.prompt(0, 1)
    trainer.ends("s-0-0")
    trainer.handle(FromTrainer("trainer", EndSample("s")))
    trainer.restart()
    books = trainer.ledger._books
    assert (books.held_rollouts, dict(books.samplings)) == (0, {})
    trainer.client()
    assert not [i for i in trainer.last if hasattr(i, "result")]


def test_a_name_is_free_again_once_its_rollouts_are_forgotten() -> None:
    trainer = Trainer()
    trainer.sample()
    trainer.prompt(0)
    trainer.handle(FromTrainer("trainer", EndSample("s")))
    trainer.ends("s-0-0", "s-0-1", status="cancelled")
    assert trainer.sample() == []
    [refused] = trainer.told(Refusal)
    assert "was a sampling's name before" in refused.message
    trainer.tick(RULES.retention_s + 1.0)
    trainer.client()
    assert trainer.sample()


# Restarts


def test_a_sampling_goes_on_after_a_restart() -> None:
    trainer = Trainer()
    trainer.sample(ahead=1)
    trainer.prompt(0, 1)
    trainer.ends("s-0-0", "s-0-1")
    trainer.restart()
    trainer.client()
    [wanted] = trainer.sample(ahead=1, again=True)
    assert (wanted.accepted, wanted.taken) == (2, 0)
    assert [each.batch.prompts for each in trainer.told(Batch)] == [(0,)]
    trainer.worker("w", "run", slots=4, held=(("s-1-0", 1), ("s-1-1", 1)))
    assert trainer.sampler().live == 0, "the rest was stopped again"


def test_a_filter_that_the_topology_has_lost_ends_its_samplings() -> None:
    trainer = Trainer(filters={**FILTERS, "mine": FILTERS["all"]})
    trainer.sample(keep="mine")
    trainer.prompt(0)
    trainer.rules = replace(trainer.rules, filters=FILTERS)
    trainer.restart()
    trainer.client()
    trainer.worker("w", "run", held=(("s-0-0", 1), ("s-0-1", 1)))
    trainer.ends("s-0-0", "s-0-1")
    [batch] = [each.batch for each in trainer.told(Batch)]
    assert (batch.reason, batch.last) == ("filter", True)
    assert "filter 'mine'" in batch.why


def test_a_crash_anywhere_in_an_event_loses_nothing() -> None:
    """Every prefix of the rows of a whole sampling leads to the same batch."""
    trainer = Trainer()
    trainer.sample()
    trainer.prompt(0, 1)
    trainer.ends("s-0-0", "s-1-0", "s-0-1")
    trainer.ends("s-1-1", status="cancelled")
    changes = list(trainer.journal.changes)
    for durable in range(1, len(changes) + 1):
        again = Trainer()
        again.journal.changes = list(changes)
        again.journal.crash(durable)
        again.restart()
        again.client()
        again.worker("w", "run", slots=4)
        again.sample(again=True)
        for prompt in (0, 1):
            again.prompt(prompt)
        for name in ("s-0-0", "s-1-0", "s-0-1", "s-1-1"):
            if again.state(name) in {"leased", "stopping"}:
                status = "done" if again.state(name) == "leased" else "cancelled"
                again.ends(name, status=status)
        [batch] = again.sampler().sealed
        report = batch.report
        assert again.sampler().is_final(batch), durable
        assert (len(batch.prompts), report.kept.groups, report.cancelled.groups) == (1, 1, 1)
        assert report.kept.rollouts + report.cancelled.rollouts == 4, durable
