import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import JournalError
from engine.journal.segments import Ballast, Cursor, Location, Segments

SEGMENT = 4096


@pytest.fixture
def segments(tmp_path: Path) -> Iterator[Segments]:
    opened = Segments(tmp_path / "bodies", SEGMENT)
    yield opened
    opened.close()


@pytest.fixture
def cursor() -> Cursor:
    return Cursor(0, SEGMENT)


def write(segments: Segments, cursor: Cursor, *bodies: bytes, order: int = 1) -> list[Location]:
    written = []
    for position, body in enumerate(bodies, start=1):
        location = cursor.place(len(body), zlib.crc32(body))
        segments.write([(location, [memoryview(body)])], sync=True)
        segments.keep(order, position, location)
        written.append(location)
    return written


def names(segments: Segments) -> list[str]:
    return sorted(path.name for path in segments._directory.iterdir())


def test_places_fill_a_segment_and_then_begin_the_next(cursor: Cursor) -> None:
    places = [cursor.place(length, 0).place for length in (4000, 96, 1, 4096)]
    assert places == [(1, 0), (1, 4000), (2, 0), (3, 0)]


def test_a_body_larger_than_a_segment_gets_one_of_its_own_and_the_current_one_goes_on(
    cursor: Cursor,
) -> None:
    places = [cursor.place(length, 0).place for length in (10, SEGMENT + 1, 10, SEGMENT)]
    assert places == [(1, 0), (2, 0), (1, 10), (3, 0)]


def test_an_empty_body_has_a_place_of_its_own(segments: Segments, cursor: Cursor) -> None:
    first, second = write(segments, cursor, b"", b"x")
    assert first.place != second.place
    assert segments.read(first) == b""
    assert segments.read(second) == b"x"


def test_bodies_of_many_frames_are_read_back_as_one(segments: Segments, cursor: Cursor) -> None:
    frames = [memoryview(bytes([number % 251]) * (number % 5)) for number in range(1500)]
    body = b"".join(frames)
    location = cursor.place(len(body), zlib.crc32(body))
    segments.write([(location, frames)], sync=False)
    assert segments.read(location) == body


def test_a_short_write_is_continued(
    segments: Segments, cursor: Cursor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev
    monkeypatch.setattr(
        os, "pwritev", lambda file, frames, at, flags: real(file, [frames[0][:3]], at, flags)
    )
    (location,) = write(segments, cursor, b"a long body, three bytes a call")
    assert segments.read(location) == b"a long body, three bytes a call"


def test_a_batch_over_two_segments_is_synced_file_by_file(
    segments: Segments, cursor: Cursor, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    locations = [cursor.place(4000, 0), cursor.place(4000, 0)]
    batch = [(location, [memoryview(bytes(4000))]) for location in locations]
    segments.write(batch, sync=False)
    assert synced == []
    segments.write(batch, sync=True)
    assert sorted(synced) == sorted(segments._files.values())


def test_a_failing_sync_names_the_segment(
    segments: Segments, cursor: Cursor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", refuse)
    batch = [(cursor.place(4000, 0), [memoryview(bytes(4000))]) for _ in range(2)]
    with pytest.raises(JournalError, match=r"00000[12]\.seg: cannot sync: Input/output error"):
        segments.write(batch, sync=True)


def test_a_changed_byte_is_an_error_that_names_file_and_offset(
    segments: Segments, cursor: Cursor, tmp_path: Path
) -> None:
    _, second = write(segments, cursor, b"first", b"second")
    with (tmp_path / "bodies" / "000001.seg").open("r+b") as file:
        file.seek(second.offset + 2)
        file.write(b"!")
    with pytest.raises(JournalError, match=r"000001\.seg: offset 5"):
        segments.read(second)


def test_a_missing_segment_is_an_error_that_names_it(segments: Segments) -> None:
    with pytest.raises(JournalError, match=r"000009\.seg: cannot read the body at offset 7"):
        segments.read(Location(9, 7, 1, 0))


def test_a_segment_goes_only_when_its_last_body_does(segments: Segments, cursor: Cursor) -> None:
    first, second, _ = write(segments, cursor, b"a" * 2000, b"b" * 2000, b"c" * 2000)
    segments.drop(first.place)
    segments.retire(recycle=False)
    assert names(segments) == ["000001.seg", "000002.seg"]
    segments.drop(second.place)
    segments.retire(recycle=False)
    assert names(segments) == ["000002.seg"]


def test_the_segment_that_takes_the_next_body_stays_even_when_empty(
    segments: Segments, cursor: Cursor
) -> None:
    (only,) = write(segments, cursor, b"a")
    segments.drop(only.place)
    segments.retire(recycle=True)
    assert names(segments) == ["000001.seg"]


def test_a_dead_segment_is_written_again_under_a_new_name(
    segments: Segments, cursor: Cursor, tmp_path: Path
) -> None:
    first, _ = write(segments, cursor, b"a" * SEGMENT, b"b" * SEGMENT)
    inode = (tmp_path / "bodies" / "000001.seg").stat().st_ino
    segments.drop(first.place)
    segments.retire(recycle=True)
    assert names(segments) == ["000002.seg", "spare.seg"]
    (third,) = write(segments, cursor, b"c" * 10)
    assert (tmp_path / "bodies" / "000003.seg").stat().st_ino == inode
    assert segments.read(third) == b"c" * 10


def test_a_segment_of_one_large_body_goes_with_it(segments: Segments, cursor: Cursor) -> None:
    large, _ = write(segments, cursor, b"a" * (SEGMENT + 1), b"b")
    segments.drop(large.place)
    segments.retire(recycle=True)
    assert names(segments) == ["000002.seg"]


def test_dropping_an_order_drops_its_bodies_once(segments: Segments, cursor: Cursor) -> None:
    first, _ = write(segments, cursor, b"a" * 10, b"b" * 20, order=3)
    write(segments, cursor, b"c" * 5, order=4)
    segments.drop_order(3)
    segments.drop_order(3)
    segments.drop(first.place)
    assert segments.live_bytes == 5
    assert segments.owner(first.place) is None


def test_adopting_removes_files_and_tails_that_no_row_needs(
    segments: Segments, cursor: Cursor, tmp_path: Path
) -> None:
    first, _, third = write(segments, cursor, b"a" * 100, b"b" * SEGMENT, b"c" * 50)
    again = Segments(tmp_path / "bodies", SEGMENT)
    assert again.adopt([(1, 1, first), (1, 3, third)]) == 3
    assert names(again) == ["000001.seg", "000003.seg"]
    assert (tmp_path / "bodies" / "000001.seg").stat().st_size == 100
    assert again.read(first) == b"a" * 100
    assert again.live_bytes == 150


def test_adopting_names_the_segment_that_is_missing_or_too_short(
    segments: Segments, tmp_path: Path
) -> None:
    with pytest.raises(JournalError, match=r"000004\.seg: .*offset 0.*No such file"):
        segments.adopt([(1, 1, Location(4, 0, 10, 0))])
    (tmp_path / "bodies" / "000005.seg").write_bytes(b"short")
    with pytest.raises(JournalError, match=r"000005\.seg: ends within the body at offset 3"):
        segments.adopt([(1, 1, Location(5, 3, 10, 0))])


def test_ballast_takes_its_space_and_gives_it_back(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "ballast", 8192)
    ballast.restore()
    ballast.restore()
    assert (tmp_path / "ballast").stat().st_size == 8192
    ballast.free()
    ballast.free()
    assert not (tmp_path / "ballast").exists()
