"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from engine.files import draft_of, write_whole


def test_a_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "book.json"
    write_whole(path, b"long former content")
    write_whole(path, b"new", mode=0o600, sync=True)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["book.json"]


def test_what_was_there_stays_when_the_new_content_fails(tmp_path: Path) -> None:
    path = tmp_path / "book.json"
    write_whole(path, b"former")

    def fail() -> None:
        with draft_of(path) as draft:
            draft.write_bytes(b"half")
            raise ValueError("no good")

    with pytest.raises(ValueError, match="no good"):
        fail()
    assert path.read_bytes() == b"former"
    assert [each.name for each in tmp_path.iterdir()] == ["book.json"]


def test_the_former_content_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "book.json"
    write_whole(path, b"former")
    with draft_of(path) as draft:
        draft.write_bytes(b"new")
        assert path.read_bytes() == b"former"
    assert path.read_bytes() == b"new"
