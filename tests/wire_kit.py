"""Any instance of any message, drawn from its annotations, with body frames that fit it."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st

from engine import messages
from engine.records import ITEM_BYTES, Buffer
from engine.typed import INT64, bounds, fields, is_record

EDGES: dict[str, tuple[type[Any], ...]] = {
    "from-trainer": messages.FROM_TRAINER,
    "to-trainer": messages.TO_TRAINER,
    "from-node": messages.FROM_NODE,
    "to-node": messages.TO_NODE,
    "work": messages.WORK,
    "results": messages.RESULTS,
    "events": messages.EVENTS,
}
KINDS = tuple(dict.fromkeys(kind for kinds in EDGES.values() for kind in kinds))
MOST = 4  # items of an array that is drawn; bounds themselves are tested by name
CHARACTERS = st.characters(exclude_categories=("Cs",))

Sent = tuple[Any, list[bytes]]


def sent(kind: type[Any]) -> st.SearchStrategy[Sent]:
    """Draw a message of `kind` and its body frames."""
    hints = {field.name: field.annotation for field in fields(kind)}
    body = hints.pop("buffers", None)
    drawn = {name: _annotated(hint) for name, hint in hints.items()}
    if body is None:
        return st.builds(kind, **drawn).map(lambda record: (record, []))
    least, most = _lengths(getattr(body, "__metadata__", ()))
    described = st.lists(buffers(), min_size=least, max_size=most, unique_by=lambda b: b[0].name)
    return st.tuples(st.fixed_dictionaries(drawn), described).map(lambda both: _join(kind, both))


def buffers() -> st.SearchStrategy[tuple[Buffer, bytes]]:
    """Draw a description and as many bytes as it says; json holds any bytes."""
    names = st.text(CHARACTERS, min_size=1, max_size=8)
    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    numbers = st.sampled_from(sorted(set(ITEM_BYTES) - {"json"}))
    arrays = st.builds(Buffer, names, numbers, shapes)
    texts = st.builds(Buffer, names, st.just("json"), st.tuples(st.integers(0, 9)))
    described = arrays | texts
    return described.flatmap(
        lambda b: st.tuples(st.just(b), st.binary(min_size=b.size_bytes, max_size=b.size_bytes))
    )


def _join(kind: type[Any], drawn: tuple[dict[str, Any], list[tuple[Buffer, bytes]]]) -> Sent:
    fields, body = drawn
    record = kind(**fields, buffers=tuple(buffer for buffer, _ in body))
    return record, [frame for _, frame in body]


def _lengths(marks: tuple[Any, ...]) -> tuple[int, int]:
    for mark in bounds(marks):
        if mark.ge is None:
            least = mark.min_length or 0
            return least, min(mark.max_length or least + MOST, least + MOST)
    return 0, MOST


def _annotated(annotation: Any) -> st.SearchStrategy[Any]:
    if get_origin(annotation) is not Annotated:
        return _drawn(annotation, 0, MOST, None)
    base, *marks = get_args(annotation)
    number = next((mark.ge for mark in bounds(tuple(marks)) if mark.ge is not None), None)
    return _drawn(base, *_lengths(tuple(marks)), number)


def _drawn(base: Any, least: int, most: int, number: float | None) -> st.SearchStrategy[Any]:
    if base is str:
        return st.text(CHARACTERS, min_size=least, max_size=max(most, 1))
    if base is int:
        return st.integers(-INT64 if number is None else int(number), INT64 - 1)
    if base is float:
        return st.floats(number, allow_nan=False, allow_infinity=False)
    if base is bool:
        return st.booleans()
    if is_record(base):
        return st.builds(base, **{each.name: _annotated(each.annotation) for each in fields(base)})
    return _generic(get_origin(base), get_args(base), least, most)


def _generic(origin: Any, arguments: Any, least: int, most: int) -> st.SearchStrategy[Any]:
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in {Union, types.UnionType}:
        inner = next(choice for choice in arguments if choice is not type(None))
        return st.none() | _annotated(inner)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(_annotated(arguments[0]), min_size=least, max_size=most).map(tuple)
    if origin is tuple:
        return st.tuples(*map(_annotated, arguments))
    assert origin is dict, origin
    return st.dictionaries(st.text(CHARACTERS, max_size=8), _annotated(arguments[1]), max_size=MOST)
