r"""What an editor does to a text: pure functions, with errors that help a model.

Job: view with line numbers, replace what is unique, insert.
Does not know: files. Invariants: a text without a final newline stays so; line endings are kept.
Line numbers begin at 1.
"""

import difflib

from ..agent import ToolError

VIEW_LINES = 2_000
VIEW_CHARACTERS = 16_000
NEAR_LINES = 4  # shown around a change
LIKE_LINES = 3  # suggestions for a text that is not there


def numbered(text: str, first: int = 1, last: int | None = None) -> str:
    """Return lines `first` to `last`, both included, each behind its number.

    Raises: ToolError if there are no such lines.
    """
    lines = text.splitlines()
    end = len(lines) if last is None or last == -1 else last
    if not lines and first == 1:
        return "[the file is empty]"
    if not 1 <= first <= len(lines):
        raise ToolError(f"line {first} does not exist: the file has lines 1 to {len(lines)}")
    if end < first:
        raise ToolError(f"the range ends at {end}, before it begins at {first}")
    shown = [
        f"{number:6}\t{lines[number - 1]}" for number in range(first, min(end, len(lines)) + 1)
    ]
    return _within(shown[:VIEW_LINES], first, len(lines), is_whole=len(shown) <= VIEW_LINES)


def _within(shown: list[str], first: int, total: int, *, is_whole: bool) -> str:
    length = 0
    for count, line in enumerate(shown):
        length += len(line) + 1
        if length > VIEW_CHARACTERS and count:
            shown, is_whole = shown[:count], False
            break
    text = "\n".join(shown)[: VIEW_CHARACTERS + 200]
    if is_whole:
        return text
    after = first + len(shown)
    return f"{text}\n[cut before line {after} of {total}; ask for a range to see more]"


def replaced(text: str, old: str, new: str) -> tuple[str, int]:
    """Return the text with `old`, which must be there exactly once, replaced; and the line of it.

    Raises: ToolError saying where `old` is if it is not unique, and what is like it if it is
    nowhere.
    """
    if not old:
        raise ToolError("old is empty: use insert to add text, or create to write a file")
    places = _places(text, old)
    if not places:
        raise ToolError(_nowhere(text, old))
    if len(places) > 1:
        lines = ", ".join(str(_line_at(text, place)) for place in places[:10])
        more = " and more" if len(places) > 10 else ""
        raise ToolError(
            f"old is there {len(places)} times, at lines {lines}{more}: give more of it"
        )
    if old == new:
        raise ToolError("old and new are the same: nothing would change")
    place = places[0]
    return text[:place] + new + text[place + len(old) :], _line_at(text, place)


def inserted(text: str, after: int, new: str) -> str:
    """Return the text with `new` as lines of its own after line `after`; 0 is the beginning.

    Raises: ToolError if there is no such line.
    """
    lines = text.splitlines(keepends=True)
    if not 0 <= after <= len(lines):
        raise ToolError(f"line {after} does not exist: give 0 to {len(lines)}")
    ending = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    before, behind = "".join(lines[:after]), "".join(lines[after:])
    if before and not before.endswith(("\n", "\r")):
        before += ending
        new = new.removesuffix("\n")
    elif not new.endswith("\n"):
        new += ending
    return before + new + behind


def around(text: str, line: int, lines: int) -> str:
    """Return a changed place with its neighbourhood, numbered."""
    total = len(text.splitlines())
    if not total:
        return "[the file is empty]"
    first = min(max(1, line - NEAR_LINES), total)
    return numbered(text, first, min(total, line + max(1, lines) - 1 + NEAR_LINES))


def _places(text: str, part: str) -> list[int]:
    found, start = [], text.find(part)
    while start >= 0:
        found.append(start)
        start = text.find(part, start + 1)
    return found


def _line_at(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _nowhere(text: str, old: str) -> str:
    wanted = [line for line in old.splitlines() if line.strip()]
    lines = text.splitlines()
    if not wanted or len(lines) > 20_000:
        return "old is not in the file; view it and copy the text exactly"
    by_words = {" ".join(line.split()): number for number, line in enumerate(lines, 1)}
    first = " ".join(wanted[0].split())
    if first in by_words:
        number = by_words[first]
        return (
            f"old is not in the file, but line {number} differs from its first line only in "
            f"spaces, or the lines after it differ:\n{numbered(text, number, number)}"
        )
    like = difflib.get_close_matches(first, list(by_words), LIKE_LINES, 0.6)
    if not like:
        return "old is not in the file; view it and copy the text exactly"
    shown = "\n".join(numbered(text, by_words[each], by_words[each]) for each in like)
    return f"old is not in the file; lines that are like its first one:\n{shown}"
