"""Samplings in the ledger that share limits.rollouts: what each reserves, and what is refused."""

from engine.ledger import FromTrainer
from engine.messages import Accepted, Credit, EndSample, Refusal

from .test_ledger_sampling import Trainer


def test_samplings_reserve_their_room_together() -> None:
    trainer = Trainer(rollouts=8)
    trainer.sample("a")
    trainer.sample("b")
    assert trainer.sample("c") == []
    trainer.handle(FromTrainer("trainer", EndSample("a")))
    assert len(trainer.sample("c")) == 1


def test_nobody_is_given_the_room_that_a_sampling_has_reserved() -> None:
    """Each reserves four of ten: the first may hold two more, and other submits none."""
    trainer = Trainer(slots=16, rollouts=10)
    trainer.sample("a")
    trainer.sample("b")
    trainer.prompt(0, 1, 2, name="a")
    assert len(trainer.told(Accepted)) == 1
    trainer.prompt(3, name="a")
    [refusal] = trainer.told(Refusal)
    assert (refusal.code, "4 kept free for samplings" in refusal.message) == ("full", True)
    trainer.submit("x")
    assert [each.code for each in trainer.told(Refusal)] == ["full"]
    trainer.prompt(0, name="b")
    trainer.prompt(1, name="b")
    assert len(trainer.told(Accepted)) == 1, "the second has its own room all the same"
    trainer.prompt(2, name="b")
    assert [each.code for each in trainer.told(Refusal)] == ["full"]


def test_credit_is_not_offered_of_what_another_sampling_has_reserved() -> None:
    trainer = Trainer(slots=16, rollouts=8, client="trainer")
    trainer.client("other")
    trainer.sample("a", groups=2)
    trainer.submit("x", "y", client="other")
    trainer.submit("z", client="other")
    assert [each.code for each in trainer.told(Refusal)] == ["full"]
    trainer.prompt(0, name="a")
    trainer.ends("a-0-0", "a-0-1", reward=1.0)
    trainer.ack((1, 2))
    assert trainer.told(Credit) == [], "what was acknowledged is the sampling's again"
    trainer.handle(FromTrainer("trainer", EndSample("a")))
    assert [each.rollouts for each in trainer.told(Credit)] == [6]


def test_a_sampling_does_not_open_where_another_one_holds_its_room() -> None:
    trainer = Trainer(slots=16, rollouts=10)
    trainer.sample("a")
    trainer.prompt(0, 1, 2, 3, name="a")
    assert trainer.sample("b") == []
    [refusal] = trainer.told(Refusal)
    assert refusal.code == "full"
    assert "may hold 4 beside 8 of other samplings, limits.rollouts 10" in refusal.message
    trainer.ends("a-0-0", "a-0-1", "a-1-0", "a-1-1")
    trainer.sample("a", taken=2)
    assert len(trainer.sample("b")) == 1


def test_a_sampling_opens_and_waits_for_room_that_another_client_holds() -> None:
    trainer = Trainer(slots=16, rollouts=10)
    trainer.client("other")
    trainer.sample("a", over="carry")
    trainer.prompt(0, 1, 2, 3, name="a")
    assert len(trainer.sample("b", "other")) == 1
    trainer.prompt(0, 1, name="b", client="other")
    assert [each.code for each in trainer.told(Refusal)] == ["full"]
    trainer.ends("a-0-0", "a-0-1", "a-1-0", "a-1-1")
    trainer.sample("a", over="carry", taken=2)
    assert [each.rollouts for each in trainer.told(Credit)] == [4]
    trainer.prompt(1, name="b", client="other")
    assert len(trainer.told(Accepted)) == 1
