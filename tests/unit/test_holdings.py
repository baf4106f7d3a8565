"""Who owns which sandbox: the keeper's rules."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nodes.sandboxes.contract import Limits, Owner, Spec
from nodes.sandboxes.holdings import KINDS, Holdings, clipped, key_of
from nodes.sandboxes.records import Record, decode_record, encode_record

USUAL = key_of(Spec())


def record(name: str) -> Record:
    return Record(name, "bubblewrap", "", 1, 1, 1000, f"/b/{name}", "/work", Limits(), {"A": "1"})


def owner(rollout: str = "r", attempt: int = 1) -> Owner:
    return Owner(rollout, attempt, "init-0-1")


def held(book: Holdings, name: str, mine: Owner, link: int = 1) -> Record:
    return book.hold(record(name), Spec(), mine, link, 0.0)


def test_a_warm_one_is_given_once_and_becomes_what_was_asked_for() -> None:
    book = Holdings(1, [USUAL])
    book.add_warm(record("a"), USUAL, 0.0)
    asked = Spec(limits=Limits(processes=7), environment={"B": "2"}, workdir="/work/x")
    given = book.take(asked, owner(), 1, 5.0)
    assert given is not None
    assert (given.limits.processes, given.workdir) == (7, "/work/x")
    assert given.environment == {"A": "1", "B": "2"}
    assert given.owner == owner()
    assert book.take(asked, owner(), 1, 5.0) is None


@pytest.mark.parametrize(
    "asked",
    [Spec("other"), Spec(limits=Limits(disk_bytes=1)), Spec(limits=Limits(network=True))],
)
def test_a_warm_one_of_another_kind_is_not_given(asked: Spec) -> None:
    book = Holdings(1, [USUAL])
    book.add_warm(record("a"), USUAL, 0.0)
    assert book.take(asked, owner(), 1, 0.0) is None


def test_the_pool_counts_what_is_under_way_and_learns_what_is_asked_for() -> None:
    book = Holdings(2, [USUAL])
    assert book.missing([]) == [USUAL, USUAL]
    assert book.missing([USUAL]) == [USUAL]
    book.take(Spec("swe"), owner(), 1, 0.0)
    assert key_of(Spec("swe")) in book.missing([])
    for number in range(KINDS + 3):
        book.take(Spec(str(number)), owner(), 1, 0.0)
    wanted = set(book.missing([]))
    assert len(wanted) == KINDS + 1
    assert USUAL in wanted


def test_without_a_pool_nothing_is_started_for_nobody() -> None:
    book = Holdings(0, [])
    assert book.take(Spec(), owner(), 1, 0.0) is None
    assert book.missing([]) == []


def test_a_connection_that_is_lost_takes_what_it_held_and_leaves_what_it_pinned() -> None:
    book = Holdings(0, [])
    for name, link in (("a", 1), ("b", 1), ("c", 2)):
        held(book, name, owner(name), link)
    assert book.pin("b", 1)
    assert book.link_lost(1, 10.0) == ["a"]
    assert book.to_ask(9.0) == []
    assert book.to_ask(10.0) == ["b"]


def test_only_who_holds_one_may_pin_or_end_it() -> None:
    book = Holdings(0, [])
    held(book, "a", owner())
    assert not book.pin("a", 2)
    assert not book.pin("x", 1)
    assert not book.holds("a", 2)
    assert book.holds("a", 1)


def test_a_pin_is_not_taken_away_before_its_result_is_settled() -> None:
    book = Holdings(0, [])
    held(book, "a", owner())
    book.pin("a", 1)
    assert book.disowned(["r"], 100.0) == []
    book.settle("a", 2, 50.0)
    assert book.disowned(["r"], 100.0) == []
    book.settle("a", 1, 50.0)
    assert book.disowned(["other"], 100.0) == []
    assert book.disowned(["r"], 100.0) == ["a"]


def test_later_stages_find_the_newest_pinned_one_and_no_other() -> None:
    book = Holdings(0, [])
    held(book, "a", owner(attempt=1))
    assert book.find("r") is None
    book.pin("a", 1)
    held(book, "b", owner(attempt=3))
    book.pin("b", 1)
    found = book.find("r")
    assert found is not None
    assert found.name == "b"
    assert book.find("other") is None


def test_a_later_pin_replaces_earlier_ones_once_it_is_settled() -> None:
    book = Holdings(0, [])
    for name, mine in (("a", owner(attempt=1)), ("b", owner(attempt=2)), ("c", owner("other"))):
        held(book, name, mine)
        assert book.pin(name, 1)
    assert book.settle("c", 1, 0.0) == []
    assert book.settle("a", 1, 0.0) == []
    assert book.settle("b", 1, 0.0) == ["a"]


def test_a_fresh_one_beside_a_pinned_one_leaves_it_alone() -> None:
    book = Holdings(0, [])
    held(book, "a", owner(attempt=1))
    book.pin("a", 1)
    book.settle("a", 1, 0.0)
    held(book, "b", owner(attempt=2), 2)
    assert book.link_lost(2, 0.0) == ["b"]
    found = book.find("r")
    assert found is not None
    assert found.name == "a"


def test_a_life_is_counted_from_the_day_it_is_lent() -> None:
    book = Holdings(1, [USUAL])
    book.add_warm(record("a"), USUAL, 0.0)
    assert book.expired(1e9) == []
    book.take(Spec(limits=Limits(wall_s=10.0)), owner(), 1, 100.0)
    assert book.expired(109.0) == []
    assert book.expired(111.0) == ["a"]


def test_limits_are_clipped_and_the_network_is_not() -> None:
    most = Limits(memory_bytes=10, total_bytes=9, cpu_s=1.0, processes=2, wall_s=3.0, disk_bytes=4)
    found = clipped(replace(Limits(), network=True, processes=1), most)
    assert found == replace(most, network=True, processes=1, output_bytes=Limits().output_bytes)


def test_a_record_survives_its_file() -> None:
    full = replace(record("a"), owner=owner())
    assert decode_record(encode_record(full)) == full
    with pytest.raises(ValueError, match="no record"):
        decode_record(b'{"name": 3}')


class Book(RuleBasedStateMachine):
    """Connections, pins and answers of the broker in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.book = Holdings(2, [USUAL])
        self.now = 0.0
        self.made = 0
        self.ended: list[str] = []
        self.links = {1, 2, 3}

    def end(self, names: list[str]) -> None:
        for name in names:
            assert self.book.get(name) is not None
            self.book.forget(name)
            self.ended.append(name)

    def fresh(self) -> Record:
        self.made += 1
        return record(f"sb-{self.made}")

    @rule()
    def fill(self) -> None:
        for key in self.book.missing([]):
            self.book.add_warm(self.fresh(), key, self.now)

    @rule(rollout=st.sampled_from("pqr"), attempt=st.integers(1, 4), link=st.sampled_from([1, 2]))
    def start(self, rollout: str, attempt: int, link: int) -> None:
        mine = Owner(rollout, attempt, f"w-{link}")
        if self.book.take(Spec(), mine, link, self.now) is None:
            self.book.hold(self.fresh(), Spec(), mine, link, self.now)

    @rule(data=st.data(), link=st.sampled_from([1, 2]), settled=st.booleans())
    def pin(self, data: st.DataObject, link: int, settled: bool) -> None:
        names = self.book.names()
        if names:
            name = data.draw(st.sampled_from(names))
            if self.book.pin(name, link) and settled:
                self.end(self.book.settle(name, link, self.now))

    @rule(link=st.sampled_from([1, 2]))
    def lose(self, link: int) -> None:
        self.end(self.book.link_lost(link, self.now + 5.0))
        assert not any(
            each.state == "held" and each.link == link for each in self.book._book.values()
        )

    @rule(rollouts=st.sets(st.sampled_from("pqr")))
    def ask(self, rollouts: set[str]) -> None:
        self.end(self.book.disowned(sorted(rollouts), self.now))

    @rule(seconds=st.floats(0.0, 4000.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.end(self.book.expired(self.now))

    @invariant()
    def every_sandbox_is_in_the_book_or_was_ended_once(self) -> None:
        assert len(set(self.ended)) == len(self.ended)
        assert len(self.book) + len(self.ended) == self.made

    @invariant()
    def who_finds_one_finds_a_pinned_one_of_its_own(self) -> None:
        for rollout in "pqr":
            found = self.book.find(rollout)
            assert found is None or (found.owner and found.owner.rollout_id == rollout)

    def teardown(self) -> None:
        """Once every connection is lost and every rollout over, only the pool is left."""
        self.end(self.book.link_lost(1, self.now))
        self.end(self.book.link_lost(2, self.now))
        self.end(self.book.disowned(self.book.to_ask(self.now + 6.0), self.now + 6.0))
        assert len(self.book) == self.book.count("warm")


TestBook = Book.TestCase
TestBook.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
