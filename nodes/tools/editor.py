"""Tool `editor`: view, create, replace, insert and undo on files of a sandbox.

Job: the tool's schema, files by the sandbox's contract, and what can be undone.
Does not know: how texts change (`editing`).
Invariants: a file is written whole or not at all, as the sandbox writes it. Undo gives back exactly
the bytes of before; a file that was not there before is removed. Only text files up to MOST_BYTES
are edited.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ..agent import Tool, ToolError
from ..sandboxes.contract import Entry, Sandbox, SandboxFileError
from .editing import around, inserted, numbered, replaced

MOST_BYTES = 2_000_000
MOST_UNDO = 50  # changes remembered
MOST_UNDO_BYTES = 16_000_000
MOST_ENTRIES = 500
REMOVE_S = 30.0
DESCRIPTION = (
    "View and edit files. view: a file with line numbers, or a directory. create: write a whole "
    "file. replace: put `new` in place of `old`, which must be in the file exactly once, with its "
    "spaces. insert: add `new` after a line. undo: take back the last change of a file."
)
Command = Literal["view", "create", "replace", "insert", "undo"]


@dataclass(frozen=True, slots=True)
class Change:
    """What a file was before a change; None if it was not there."""

    path: str
    before: bytes | None


class Editor:
    """The tool, and the changes that it can take back."""

    def __init__(self, sandbox: Sandbox, workdir: str = "/work") -> None:
        self._sandbox = sandbox
        self._workdir = workdir.rstrip("/")
        self._changes: list[Change] = []
        self.tool = Tool("editor", DESCRIPTION, PARAMETERS, self.call)

    async def call(
        self,
        command: Command,
        path: str,
        *,
        old: str | None = None,
        new: str | None = None,
        line: int | None = None,
        last_line: int | None = None,
    ) -> str:
        """Carry out a command and return what the model is told.

        Raises: ToolError for what the model can correct; BoundaryError("sandbox").
        """
        path = path if path.startswith("/") else f"{self._workdir}/{path}"
        match command:
            case "view":
                return await self._view(path, line, last_line)
            case "create":
                return await self._create(path, _needed("new", new))
            case "replace":
                return await self._replace(path, _needed("old", old), new or "")
            case "insert":
                return await self._insert(path, _needed("line", line), _needed("new", new))
            case "undo":
                return await self._undo(path)

    async def _view(self, path: str, first: int | None, last: int | None) -> str:
        try:
            return numbered(_text(path, await self._read(path)), first or 1, last)
        except SandboxFileError as no_file:
            try:
                entries = await self._sandbox.list(path)
            except SandboxFileError:
                raise ToolError(f"{path}: {no_file.strerror}") from None
        return _listing(path, entries)

    async def _create(self, path: str, text: str) -> str:
        try:
            before: bytes | None = await self._read(path)
        except SandboxFileError:
            before = None
        await self._write(path, before, text)
        lines = len(text.splitlines())
        return f"{path}: {'written' if before is None else 'overwritten'}, {lines} lines"

    async def _replace(self, path: str, old: str, new: str) -> str:
        before = await self._existing(path)
        text, line = replaced(_text(path, before), old, new)
        await self._write(path, before, text)
        return f"{path}: replaced\n{around(text, line, new.count(chr(10)) + 1)}"

    async def _insert(self, path: str, after: int, new: str) -> str:
        before = await self._existing(path)
        text = inserted(_text(path, before), after, new)
        await self._write(path, before, text)
        return f"{path}: inserted\n{around(text, after + 1, len(new.splitlines()))}"

    async def _undo(self, path: str) -> str:
        mine = [place for place, change in enumerate(self._changes) if change.path == path]
        if not mine:
            raise ToolError(f"{path}: no change to take back")
        before = self._changes[mine[-1]].before
        if before is None:
            removed = await self._sandbox.exec(["rm", "-f", "--", path], timeout_s=REMOVE_S)
            if removed.exit_code != 0:
                raise ToolError(f"{path}: cannot be removed")
        else:
            await self._put(path, before)
        del self._changes[mine[-1]]
        return f"{path}: {'removed' if before is None else 'as it was before the last change'}"

    async def _existing(self, path: str) -> bytes:
        try:
            return await self._read(path)
        except SandboxFileError as wrong:
            raise ToolError(f"{path}: {wrong.strerror}") from None

    async def _read(self, path: str) -> bytes:
        data = await self._sandbox.read(path, MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ToolError(f"{path}: larger than {MOST_BYTES} bytes")
        return data

    async def _write(self, path: str, before: bytes | None, text: str) -> None:
        data = text.encode("utf-8", "replace")
        if len(data) > MOST_BYTES:
            raise ToolError(f"{path}: would be larger than {MOST_BYTES} bytes")
        await self._put(path, data)
        self._changes.append(Change(path, before))
        while len(self._changes) > MOST_UNDO or self._remembered() > MOST_UNDO_BYTES:
            del self._changes[0]

    async def _put(self, path: str, data: bytes) -> None:
        try:
            await self._sandbox.write(path, data)
        except SandboxFileError as wrong:
            raise ToolError(f"{path}: cannot be written: {wrong.strerror}") from None

    def _remembered(self) -> int:
        return sum(len(change.before or b"") for change in self._changes)


def _needed(name: str, value: Any) -> Any:
    if value is None:
        raise ToolError(f"{name} is missing")
    return value


def _text(path: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ToolError(f"{path}: not a text file in UTF-8") from None


def _listing(path: str, entries: list[Entry]) -> str:
    marks = {"directory": "/", "link": "@", "file": "", "other": "?"}
    lines = [
        f"{each.name}{marks[each.kind]}"
        + (f"  {each.size_bytes} bytes" if each.kind == "file" else "")
        for each in entries[:MOST_ENTRIES]
    ]
    if len(entries) > MOST_ENTRIES:
        lines.append(f"[{len(entries) - MOST_ENTRIES} more]")
    return "\n".join([f"{path}: {len(entries)} entries", *lines])


PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "command": {"enum": ["view", "create", "replace", "insert", "undo"]},
        "path": {"type": "string", "minLength": 1, "description": "absolute, or below /work"},
        "old": {"type": "string", "description": "replace: what is there, exactly once"},
        "new": {"type": "string", "description": "create, replace, insert: the new text"},
        "line": {
            "type": "integer",
            "minimum": 0,
            "description": "view: the first line; insert: the line after which, 0 for the top",
        },
        "last_line": {
            "type": "integer",
            "description": "view: the last line to show; -1 is the end",
        },
    },
    "required": ["command", "path"],
    "additionalProperties": False,
}
