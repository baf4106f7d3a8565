"""The editor: changes to texts, undo, and what it says when it cannot."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.agent import ToolError
from nodes.agent.tools import Toolbox
from nodes.sandboxes.contract import Entry, SandboxFileError
from nodes.tools.editing import inserted, numbered, replaced
from nodes.tools.editor import MOST_BYTES, Editor


class Files:
    """The files of a sandbox, in memory."""

    def __init__(self, **files: bytes) -> None:
        self.files = {f"/work/{name}": data for name, data in files.items()}

    async def read(self, path: str, most_bytes: int) -> bytes:
        if path not in self.files:
            raise SandboxFileError(2, "No such file or directory")
        return self.files[path][:most_bytes]

    async def write(self, path: str, data: bytes) -> None:
        if path.startswith("/proc/"):
            raise SandboxFileError(13, "Permission denied")
        self.files[path] = data

    async def list(self, path: str) -> list[Entry]:
        if path != "/work":
            raise SandboxFileError(20, "Not a directory")
        return [Entry(name[6:], "file", len(data)) for name, data in sorted(self.files.items())]

    async def exec(self, argv: Sequence[str], **_: Any) -> Any:
        assert argv[:3] == ["rm", "-f", "--"]
        del self.files[argv[3]]
        return type("Finished", (), {"exit_code": 0})()


def editor(**files: bytes) -> tuple[Editor, Files]:
    box = Files(**files)
    return Editor(box), box  # type: ignore[arg-type]


def use(editor: Editor, command: str, path: str = "a", **arguments: Any) -> str:
    assert not list(
        Toolbox([editor.tool])
        ._checks["editor"]
        .iter_errors({"command": command, "path": path, **arguments})
    )
    return asyncio.run(editor.call(command, path, **arguments))  # type: ignore[arg-type]


def test_view_numbers_lines_and_takes_ranges() -> None:
    tool, _ = editor(a=b"one\ntwo\nthree\n")
    assert use(tool, "view") == "     1\tone\n     2\ttwo\n     3\tthree"
    assert use(tool, "view", line=2, last_line=2) == "     2\ttwo"
    assert use(tool, "view", line=3, last_line=-1) == "     3\tthree"
    assert use(tool, "view", path="/work") == "/work: 1 entries\na  14 bytes"
    with pytest.raises(ToolError, match="line 9 does not exist: the file has lines 1 to 3"):
        use(tool, "view", line=9)
    with pytest.raises(ToolError, match="No such file"):
        use(tool, "view", path="b")


def test_a_long_file_is_cut_and_says_where_to_go_on() -> None:
    tool, _ = editor(a=b"x" * 99 + b"\n" + b"y\n" * 100_000)
    told = use(tool, "view")
    assert len(told) < 20_000
    assert "ask for a range" in told


def test_replace_wants_text_that_is_there_once() -> None:
    tool, box = editor(a=b"one\ntwo\none\n    four\n")
    assert "replaced" in use(tool, "replace", old="two\n", new="2\n")
    assert box.files["/work/a"] == b"one\n2\none\n    four\n"
    with pytest.raises(ToolError, match="2 times, at lines 1, 3"):
        use(tool, "replace", old="one", new="1")
    with pytest.raises(ToolError, match="line 4 differs from its first line only in spaces"):
        use(tool, "replace", old="  four \n", new="4")
    with pytest.raises(ToolError, match="like its first one:\n     4\t    four"):
        use(tool, "replace", old="    fourr\n", new="4")
    with pytest.raises(ToolError, match="the same"):
        use(tool, "replace", old="2", new="2")
    with pytest.raises(ToolError, match="old is missing"):
        use(tool, "replace", new="2")
    assert "replaced" in use(tool, "replace", old="2\n")
    assert box.files["/work/a"] == b"one\none\n    four\n"


def test_insert_keeps_lines_whole() -> None:
    assert inserted("a\nb\n", 1, "x") == "a\nx\nb\n"
    assert inserted("a\nb", 2, "x\n") == "a\nb\nx"
    assert inserted("", 0, "x") == "x\n"
    assert inserted("a\r\nb\r\n", 1, "x") == "a\r\nx\r\nb\r\n"
    with pytest.raises(ToolError, match="give 0 to 2"):
        inserted("a\nb\n", 3, "x")


def test_create_overwrites_and_undo_takes_back_even_the_file() -> None:
    tool, box = editor()
    assert "written, 2 lines" in use(tool, "create", path="deep/b", new="1\n2\n")
    assert "overwritten" in use(tool, "create", path="deep/b", new="3\n")
    assert "as it was" in use(tool, "undo", path="deep/b")
    assert box.files["/work/deep/b"] == b"1\n2\n"
    assert "removed" in use(tool, "undo", path="deep/b")
    assert box.files == {}
    with pytest.raises(ToolError, match="no change to take back"):
        use(tool, "undo", path="deep/b")


def test_what_is_no_text_or_too_large_or_forbidden_is_refused() -> None:
    tool, _ = editor(a=b"\xff", b=b"a" * (MOST_BYTES + 1))
    with pytest.raises(ToolError, match="not a text file"):
        use(tool, "view")
    with pytest.raises(ToolError, match="larger than"):
        use(tool, "view", path="b")
    with pytest.raises(ToolError, match="would be larger"):
        use(tool, "create", path="c", new="a" * (MOST_BYTES + 1))
    with pytest.raises(ToolError, match="cannot be written: Permission denied"):
        use(tool, "create", path="/proc/x", new="a")


TEXTS = st.text("ab\n\r ", max_size=40)


@settings(deadline=None)
@given(
    TEXTS,
    st.lists(
        st.tuples(
            st.sampled_from(["replace", "insert", "create"]), TEXTS, TEXTS, st.integers(0, 5)
        ),
        max_size=10,
    ),
)
def test_undo_restores_every_byte_in_turn(
    before: str, changes: list[tuple[str, str, str, int]]
) -> None:
    tool, box = editor(a=before.encode())
    history = [box.files["/work/a"]]

    async def edit() -> None:
        for command, old, new, line in changes:
            try:
                await tool.call(command, "a", old=old, new=new, line=line)  # type: ignore[arg-type]
            except ToolError:
                assert box.files["/work/a"] == history[-1]
            else:
                history.append(box.files["/work/a"])
        while len(history) > 1:
            history.pop()
            await tool.call("undo", "a")
            assert box.files["/work/a"] == history[-1]

    asyncio.run(edit())
    assert box.files["/work/a"] == before.encode()


@given(TEXTS, TEXTS, TEXTS)
def test_a_replacement_changes_that_place_and_no_other(before: str, old: str, after: str) -> None:
    text = f"{before}<{old}>{after}"
    try:
        found, line = replaced(text, f"<{old}>", "new")
    except ToolError:
        return
    assert found == f"{before}new{after}"
    assert line == before.count("\n") + 1


@given(TEXTS)
def test_a_view_shows_every_line(text: str) -> None:
    shown = numbered(text)
    assert [line.partition("\t")[2] for line in shown.split("\n")] == (text.splitlines() or [""])
