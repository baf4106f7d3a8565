"""The parts of docs/protocol.md that are derived from records and from the ledger's table.

Job: `python -m engine.protocol_doc` rewrites what stands between the page's markers: a table of
fields for each message of each edge, the records that they share, the dtypes, and the states of a
rollout with a diagram. A test proves the page current.
Does not know: the prose around it, or the edges that nodes add; they call `rewrite` with their own.
Invariants: what the page says of a field is what its decoder does: both read the annotation.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import orjson

from . import messages, records
from .ledger.states import MEANING, TRANSITIONS
from .typed import describe, sentence

PAGE = Path(__file__).parent.parent / "docs" / "protocol.md"


@dataclass(frozen=True, slots=True)
class Direction:
    """The messages that one edge carries in one direction; `name` is that of its markers."""

    name: str
    kinds: tuple[type[Any], ...]


DIRECTIONS = (
    Direction("from-trainer", messages.FROM_TRAINER),
    Direction("to-trainer", messages.TO_TRAINER),
    Direction("from-node", messages.FROM_NODE),
    Direction("to-node", messages.TO_NODE),
    Direction("work", messages.WORK),
    Direction("results", messages.RESULTS),
    Direction("events", messages.EVENTS),
)


def blocks() -> dict[str, str]:
    """Return every derived part of docs/protocol.md by the name of its markers."""
    return {
        **message_blocks(DIRECTIONS),
        "records": record_tables(DIRECTIONS),
        "dtypes": _dtypes(),
        "diagram": state_diagram(),
        "states": state_table(),
    }


def message_blocks(directions: Iterable[Direction]) -> dict[str, str]:
    """Return, by direction, a section for each of its messages; one told before is referred to."""
    told: dict[type[Any], str] = {}
    found = {}
    for direction in directions:
        sections = []
        for kind in direction.kinds:
            sections.append(_again(kind) if kind in told else _message(kind))
            told[kind] = direction.name
        found[direction.name] = "\n\n".join(sections)
    return found


def record_tables(directions: Iterable[Direction]) -> str:
    """Return a table for each record that the messages contain, in the order of their use."""
    found: dict[type[Any], None] = {}
    for direction in directions:
        for kind in direction.kinds:
            for annotation in get_type_hints(kind).values():
                _collect(annotation, found)
    return "\n\n".join(f"#### {kind.__name__}\n\n{_told(kind)}" for kind in found)


def state_diagram() -> str:
    """Draw the ledger's table as a Mermaid state diagram."""
    steps = [
        f"    {before} --> {after}: {action}" for (before, action), after in TRANSITIONS.items()
    ]
    first, last = "    [*] --> ready: submit", "    acked --> [*]: retention is over"
    return "\n".join(["```mermaid", "stateDiagram-v2", first, *steps, last, "```"])


def state_table() -> str:
    """Return every transition of the ledger's table with what it means."""
    head = "| state | action | next state | meaning |\n| --- | --- | --- | --- |"
    rows = [
        f"| {before} | {action} | {after} | {MEANING[action]} |"
        for (before, action), after in TRANSITIONS.items()
    ]
    return "\n".join([head, *rows])


def rewrite(page: str, parts: Mapping[str, str]) -> str:
    """Return a page whose parts, between `<!-- begin: NAME -->` and `<!-- end: NAME -->`, are new.

    Raises: ValueError if the markers of a part are missing or repeat.
    """
    for name, part in parts.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page needs {begin} and {end}, once each")
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        page = f"{before}{begin}\n\n{part}\n\n{end}{after}"
    return page


def main() -> None:
    """Rewrite the derived parts of docs/protocol.md."""
    PAGE.write_text(rewrite(PAGE.read_text(encoding="utf-8"), blocks()), encoding="utf-8")


def _message(kind: type[Any]) -> str:
    return f"#### `{kind.kind}`\n\n{_told(kind)}"


def _again(kind: type[Any]) -> str:
    return f"#### `{kind.kind}`, as above\n\n{_summary(kind)}"


def _told(kind: type[Any]) -> str:
    fields = dataclasses.fields(kind)
    if not fields:
        return f"{_summary(kind)}\n\nNo fields: the header is `{{}}`."
    hints = get_type_hints(kind, include_extras=True)
    head = "| field | type | default | meaning |\n| --- | --- | --- | --- |"
    rows = [_row(field, hints[field.name]) for field in fields]
    return "\n".join([f"{_summary(kind)}\n", head, *rows])


def _row(field: "dataclasses.Field[Any]", annotation: Any) -> str:
    cells = (f"`{field.name}`", describe(annotation), _default(field), sentence(annotation))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(field: "dataclasses.Field[Any]") -> str:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return "required" if value is MISSING else f"`{orjson.dumps(value).decode()}`"


def _summary(kind: type[Any]) -> str:
    return " ".join((kind.__doc__ or "").split())


def _collect(annotation: Any, found: dict[type[Any], None]) -> None:
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        found[annotation] = None
        for inner in get_type_hints(annotation).values():
            _collect(inner, found)
    for argument in get_args(annotation):
        _collect(argument, found)


def _dtypes() -> str:
    head = "| dtype | bytes an item | items |\n| --- | --- | --- |"
    words = {"json": "UTF-8 text of one JSON value", "uint8": "unsigned integers"}
    rows = [
        f"| `{dtype}` | {size} | {words.get(dtype) or _items(dtype)} |"
        for dtype, size in records.ITEM_BYTES.items()
    ]
    return "\n".join([head, *rows])


def _items(dtype: str) -> str:
    signed = "signed integers, two's complement"
    return signed if dtype.startswith("int") else "IEEE 754 binary"


if __name__ == "__main__":
    main()
