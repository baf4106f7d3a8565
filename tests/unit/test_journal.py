import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from engine.errors import JournalError
from engine.journal import Durability, Journal, Location, NullJournal, Stored
from engine.journal.store import (
    Append,
    Forget,
    Put,
    Release,
    Store,
    fold,
    lock_directory,
    refuse_network_file_system,
    split,
)
from engine.journal.writer import Gap

DEADLINE_S = 20

Failing = Callable[[str, int], None]


class Opened:
    """Opens journals whose wake can be waited for, and closes them at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.woken = threading.Event()
        self.journals: list[Journal] = []

    def __call__(self, durability: Durability = "process", **options: Any) -> Journal:
        options = {"segment_bytes": 65536, "ballast_bytes": 4096, **options}
        journal = Journal(self.directory, durability, wake=self.woken.set, **options)
        self.journals.append(journal)
        return journal

    def close(self, journal: Journal) -> None:
        self.journals.remove(journal)
        journal.close(DEADLINE_S)

    def until(self, is_reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not is_reached():
            self.woken.wait(max(0, deadline - time.monotonic()))
            self.woken.clear()
            assert time.monotonic() < deadline

    def durable(self, journal: Journal, position: int) -> None:
        self.until(lambda: journal.durable >= position)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opener = Opened(tmp_path / "journal")
    yield opener
    for journal in opener.journals:
        journal.close(DEADLINE_S)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Makes an os function fail with an errno, until told otherwise."""

    def fail(name: str, number: int) -> None:
        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, name, refuse)

    return fail


@pytest.mark.parametrize("durability", ["process", "power"])
def test_what_is_durable_is_there_after_reopening(opened: Opened, durability: Durability) -> None:
    journal = opened(durability)
    assert journal.append(7, "submit", b"{}") == (1, None)
    position, location = journal.append(8, "result", b'{"a":1}', [b"tokens", b"", b"mask"])
    journal.put("seq", b"\x00\xff")
    opened.durable(journal, 3)
    opened.close(journal)
    journal = opened(durability)
    assert list(journal.entries()) == [
        Stored(1, 7, "submit", b"{}", None),
        Stored(position, 8, "result", b'{"a":1}', location),
    ]
    assert journal.values() == {"seq": b"\x00\xff"}
    assert journal.read_body(location) == b"tokensmask"


def test_frames_of_zmq_and_memoryviews_are_bodies(opened: Opened) -> None:
    journal = opened()
    _, location = journal.append(1, "k", b"", [zmq.Frame(b"one"), memoryview(b"two")])
    opened.durable(journal, 1)
    assert journal.read_body(location) == b"onetwo"
    assert location.length == 6


def test_a_body_is_read_before_it_is_written(opened: Opened, failing: Failing) -> None:
    journal = opened()
    failing("pwritev", errno.ENOSPC)
    _, location = journal.append(1, "k", b"", [b"queued"])
    assert journal.read_body(location) == b"queued"


def test_positions_go_on_after_reopening_even_past_forgotten_entries(opened: Opened) -> None:
    journal = opened()
    journal.append(1, "k", b"")
    journal.forget([1])
    opened.close(journal)
    journal = opened()
    assert journal.durable == 2
    assert list(journal.entries()) == []
    assert journal.append(2, "k", b"")[0] == 3


def test_closing_commits_what_is_queued(opened: Opened) -> None:
    journal = opened(commit_rows=3)
    for order in range(100):
        journal.append(order, "k", b"h")
    opened.close(journal)
    assert len(list(opened().entries())) == 100


def test_changes_right_after_a_commit_gather_into_one(opened: Opened) -> None:
    journal = opened(commit_s=0.5, commit_rows=10_000)
    for order in range(8_000):
        last, _ = journal.append(order, "k", b"")
    opened.durable(journal, last)
    before = journal.statistics()["commits"]
    for order in range(8_000, 8_010):
        last, _ = journal.append(order, "k", b"")
    opened.durable(journal, last)
    assert journal.statistics()["commits"] == before + 1


def test_a_forgotten_order_goes_with_all_its_entries_and_no_other(opened: Opened) -> None:
    journal = opened()
    journal.append(1, "old", b"", [b"x"])
    journal.append(2, "other", b"")
    opened.durable(journal, 2)
    journal.append(1, "queued", b"")
    journal.forget([1])
    opened.durable(journal, journal.append(1, "new", b"")[0])
    assert [stored.kind for stored in journal.entries()] == ["other", "new"]


def test_the_last_value_of_a_key_stays(opened: Opened) -> None:
    journal = opened()
    for value in (b"1", b"2", b""):
        position = journal.put("key", value)
    opened.durable(journal, position)
    assert journal.values() == {"key": b""}


@pytest.mark.parametrize("is_committed_before", [True, False])
def test_a_released_body_leaves_its_entry(opened: Opened, is_committed_before: bool) -> None:
    journal = opened()
    position, location = journal.append(1, "k", b"header", [b"body"])
    if is_committed_before:
        opened.durable(journal, position)
    journal.release(location)
    journal.release(location)
    opened.durable(journal, journal.put("end", b""))
    assert list(journal.entries()) == [Stored(position, 1, "k", b"header", None)]
    assert journal.statistics()["live_bytes"] == 0


def test_prompt_release_keeps_ten_segments_of_bodies_in_two_files_and_a_spare(
    opened: Opened,
) -> None:
    journal = opened(segment_bytes=65536)
    for order in range(160):
        position, location = journal.append(order, "k", b"", [os.urandom(4096)])
        journal.forget([order]) if order % 2 else journal.release(location)
        opened.durable(journal, position + 1)
        files = list((opened.directory / "bodies").iterdir())
        assert sum(path.stat().st_size for path in files) <= 3 * 65536


def test_a_torn_tail_behind_the_last_row_is_ignored(opened: Opened) -> None:
    journal = opened()
    _, location = journal.append(1, "k", b"", [b"whole"])
    opened.close(journal)
    with (opened.directory / "bodies" / "000001.seg").open("r+b") as file:
        file.seek(location.length)
        file.write(b"torn")
    journal = opened()
    assert journal.read_body(location) == b"whole"
    _, after = journal.append(2, "k", b"", [b"next"])
    assert after.segment > location.segment


def test_a_corrupted_byte_is_detected(opened: Opened) -> None:
    journal = opened()
    position, location = journal.append(1, "k", b"", [b"exact"])
    opened.durable(journal, position)
    with (opened.directory / "bodies" / "000001.seg").open("r+b") as file:
        file.write(b"E")
    with pytest.raises(JournalError, match=r"000001\.seg: offset 0"):
        journal.read_body(location)


def test_a_missing_segment_stops_the_start_and_lets_go_of_the_lock(opened: Opened) -> None:
    journal = opened()
    journal.append(1, "k", b"", [b"body"])
    opened.close(journal)
    segment = opened.directory / "bodies" / "000001.seg"
    content = segment.read_bytes()
    segment.unlink()
    with pytest.raises(JournalError, match=r"000001\.seg: cannot find the body at offset 0"):
        opened()
    segment.write_bytes(content)
    assert len(list(opened().entries())) == 1


def test_a_file_that_is_no_database_is_named(opened: Opened) -> None:
    opened.directory.mkdir()
    (opened.directory / "journal.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(JournalError, match=r"journal\.db: cannot open: file is not a database"):
        opened()


def test_a_value_that_was_dropped_is_gone_until_it_is_put_again(opened: Opened) -> None:
    journal = opened()
    for key in ("a", "b", "c"):
        journal.put(key, key.encode())
    journal.drop("a")
    journal.drop("never there")
    journal.drop("b")
    journal.put("b", b"again")
    opened.close(journal)
    journal = opened()
    assert journal.values() == {"b": b"again", "c": b"c"}
    journal.drop("c")
    opened.close(journal)
    assert opened().values() == {"b": b"again"}


def test_an_unknown_schema_version_is_refused(opened: Opened) -> None:
    opened.close(opened())
    database = sqlite3.connect(opened.directory / "journal.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(JournalError, match=r"journal\.db: schema version 99, this rollmq reads 2"):
        opened()


def test_a_second_broker_is_refused_and_told_who_holds_the_journal(opened: Opened) -> None:
    opened()
    with pytest.raises(JournalError, match=f"process {os.getpid()} has this journal open"):
        opened()


def test_the_lock_is_free_again_once_closed(tmp_path: Path) -> None:
    os.close(lock_directory(tmp_path))
    os.close(lock_directory(tmp_path))


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:50 / /home rw shared:20 master:3 - nfs4 server:/home rw
41 40 8:2 / /home/me/local\\040disk rw - xfs /dev/sdb1 rw
42 22 0:51 / /scratch rw - fuse.sshfs host:/scratch rw
43 22 0:52 / /lfs rw - lustre mds:/lfs rw
"""


@pytest.mark.parametrize(
    ("directory", "mount"),
    [("/home/me/run", "/home"), ("/scratch/run", "/scratch"), ("/lfs", "/lfs")],
)
def test_network_file_systems_are_refused_by_name(
    tmp_path: Path, directory: Path, mount: str
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    with pytest.raises(JournalError, match=f"{mount} is a network or FUSE .* node-local disk"):
        refuse_network_file_system(tmp_path / directory, mounts)


@pytest.mark.parametrize("directory", ["/home/me/local disk/run", "/homestead", "/"])
def test_local_file_systems_are_taken_even_below_a_network_mount(
    tmp_path: Path, directory: Path
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    refuse_network_file_system(tmp_path / directory, mounts)


def test_a_failing_disk_reaches_the_broker_and_nothing_becomes_durable_after_it(
    opened: Opened, failing: Failing
) -> None:
    journal = opened("power")
    opened.durable(journal, journal.put("before", b""))
    failing("pwritev", errno.EIO)
    journal.append(1, "k", b"", [b"body"])
    opened.until(lambda: journal.failure is not None)
    assert "000001.seg" in str(journal.failure)
    assert journal.durable == 1
    with pytest.raises(JournalError, match="Input/output error"):
        journal.append(1, "k", b"")
    opened.journals.remove(journal)
    with pytest.raises(JournalError, match="Input/output error"):
        journal.close(DEADLINE_S)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_delays_what_is_queued_and_loses_nothing(
    opened: Opened, failing: Failing, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    journal = opened()
    with monkeypatch.context():
        failing("pwritev", number)
        position, location = journal.append(1, "k", b"", [b"body"])
        opened.until(lambda: journal.full)
        assert journal.durable == 0
        monkeypatch.undo()
    opened.until(lambda: not journal.full)
    assert journal.durable == position
    assert journal.read_body(location) == b"body"


def test_deletions_go_ahead_of_entries_that_do_not_fit(
    opened: Opened, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened()
    _, kept = journal.append(1, "kept", b"", [b"x" * 65536])
    opened.durable(journal, journal.append(2, "gone", b"", [b"y" * 65536])[0])
    failing("pwritev", errno.ENOSPC)
    journal.append(3, "waits", b"", [b"z"])
    opened.until(lambda: journal.full)
    journal.forget([2])
    journal.release(kept)
    opened.until(lambda: [stored.location for stored in journal.entries()] == [None])
    assert (journal.durable, journal.full) == (2, True)
    monkeypatch.undo()
    opened.durable(journal, 5)


def test_closing_on_a_full_disk_gives_up_at_the_deadline(opened: Opened, failing: Failing) -> None:
    journal = opened()
    failing("pwritev", errno.ENOSPC)
    journal.append(1, "k", b"", [b"body"])
    opened.until(lambda: journal.full)
    opened.journals.remove(journal)
    with pytest.raises(JournalError, match=r"1 changes are not durable after 0\.01 s"):
        journal.close(0.01)


def entry(position: int, order: int, segment: int | None = None) -> Append:
    location = None if segment is None else Location(segment, 0, 1, 0)
    return Append(position, order, "k", b"", location, [])


def test_a_batch_holds_only_what_is_left_of_its_changes() -> None:
    changes = [entry(1, 7), Put(2, "k", b"1"), Forget(3, (7,)), entry(4, 7), Put(5, "k", b"2")]
    batch = fold(changes, lambda _: None)
    assert [append.position for append in batch.entries()] == [4]
    assert (batch.forgotten, batch.values, batch.last) == ({7}, {"k": b"2"}, 5)


def test_a_release_waits_behind_what_its_order_has_queued() -> None:
    owners = {(1, 0): (7, 1), (2, 0): (8, 2)}
    changes = [entry(3, 7), Release(4, (1, 0)), Release(5, (2, 0)), Release(6, (9, 9))]
    relief, rest = split(changes, owners.get)
    assert [change.position for change in relief] == [5]
    assert [change.position for change in rest] == [3, 4, 6]


def test_a_forget_that_goes_ahead_takes_only_the_entries_before_it() -> None:
    changes = [entry(1, 7), entry(2, 8), Forget(3, (7,)), entry(4, 7)]
    relief, rest = split(changes, lambda _: None)
    assert relief == [changes[2]]
    assert rest == [changes[1], changes[3]]


def test_a_failed_commit_leaves_nothing_of_its_batch(tmp_path: Path) -> None:
    store = Store(tmp_path / "journal.db", power_safe=False)
    store.commit(fold([entry(1, 1)], lambda _: None))
    with pytest.raises(JournalError, match="UNIQUE"):
        store.commit(fold([entry(2, 2), Put(3, "k", b"v"), entry(1, 1)], lambda _: None))
    assert [stored.position for stored in store.entries()] == [1]
    assert store.values() == {}
    store.close()


def test_without_durability_everything_is_durable_at_once_and_nothing_kept() -> None:
    journal = NullJournal()
    assert journal.append(1, "k", b"", [b"body"]) == (1, None)
    assert (journal.put("k", b"v"), journal.forget([1]), journal.durable) == (2, 3, 3)
    assert (list(journal.entries()), journal.values(), journal.full) == ([], {}, False)
    journal.close(0)


def test_both_journals_have_the_same_interface() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(Journal) == public(NullJournal) | {"durable", "full", "failure", "commits"}


def test_commits_begin_as_far_apart_as_they_may_while_there_is_much_to_do() -> None:
    gap = Gap(0.005)
    for _ in range(200):
        gap.committed(50, 0.005)
    assert gap.seconds == pytest.approx(0.005, rel=0.05)


def test_a_burst_after_a_pause_waits_for_little() -> None:
    gap = Gap(0.005)
    for _ in range(20):
        gap.committed(1, 0.2)
        for _ in range(7):
            gap.committed(50, 0.001)
        assert gap.seconds < 0.001


def test_after_a_pause_the_next_commit_begins_at_once() -> None:
    gap = Gap(0.005)
    for _ in range(200):
        gap.committed(50, 0.005)
    gap.committed(1, 2.0)
    assert gap.seconds < 0.00001
