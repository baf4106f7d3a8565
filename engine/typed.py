"""JSON into typed, frozen records, or a refusal that names the field.

A record's annotations are its schema. `compile_reader(cls)` returns a function from JSON text to an
instance of a `Record`: msgspec does it in one pass, and what that refuses is decoded again by
`compile_decoder(cls)`, field by field, to name the place. Annotations may be str, int, float, bool,
None, Literal, unions with None, `tuple[T, ...]`, fixed tuples, `dict[str, T]`, other records, and
`Annotated[T, ...]` with `Length`, `AtLeast` and a sentence for the documentation. An object with a
key that the record lacks is refused; a key may be missing only where the record has a default.

This module knows neither messages nor sockets.
"""

import dataclasses
import math
import types
from collections.abc import Callable
from dataclasses import MISSING
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import orjson
from msgspec import NODEFAULT, Meta, Struct

R = TypeVar("R")
Decoder = Callable[[Any], Any]
INT64 = 2**63


class Mismatch(Exception):  # noqa: N818 - always translated before it leaves the engine
    """A value that its annotation does not allow; `path` leads to it from the record's top."""

    def __init__(self, message: str, path: tuple[str, ...] = ()) -> None:
        self.path = path
        self.message = message
        super().__init__(f"{'.'.join(path)}: {message}")


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """A frozen record that passes in messages: made, read and written by msgspec, in C.

    What passes rarely may as well be a frozen dataclass, for `compile_decoder` alone.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One field of a record; `default` is MISSING if it is required."""

    name: str
    annotation: Any
    default: Any


def Length(least: int, most: int) -> Meta:  # noqa: N802 - stands among types
    """Bound a string in characters, or an array in items."""
    return Meta(min_length=least, max_length=most)


def AtLeast(least: int) -> Meta:  # noqa: N802 - stands among types
    """Bound a number from below; an integer of a Record needs this or `Int64`."""
    return Meta(ge=least, le=INT64 - 1)


Id = Annotated[str, Length(1, 200)]
Text = Annotated[str, Length(0, 20_000)]
Int64 = Annotated[int, AtLeast(-INT64)]
Count = Annotated[int, AtLeast(0)]
Seconds = Annotated[float, AtLeast(0)]


def compile_reader(record: type[R]) -> Callable[[bytes], R]:
    """Return a function from JSON text to `record`, a Record.

    Raises: TypeError at once, if an annotation is not one of those listed above, or if it is no
    Record. The function returned raises Mismatch, or orjson.JSONDecodeError if the text is no JSON.
    """
    if not issubclass(record, Record):
        raise TypeError(f"{record.__name__} is not a Record")
    careful = compile_decoder(record)
    read_at_once = msgspec.json.Decoder(record).decode

    def read(text: bytes) -> R:
        try:
            return read_at_once(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return careful(orjson.loads(text))

    return read


def compile_decoder(record: type[R]) -> Callable[[Any], R]:
    """Return a function from a parsed JSON object to `record`, a Record or a frozen dataclass.

    Raises: TypeError at once, if an annotation is not one of those listed above. The function
    returned raises Mismatch.
    """
    plan = tuple(
        (field.name, _decoder(field.annotation), field.default) for field in fields(record)
    )
    names = frozenset(name for name, _, _ in plan)

    def decode(value: Any) -> R:
        if value.__class__ is not dict:
            raise Mismatch(f"expected an object, got {_name(value)}")
        items = []
        name = ""
        try:
            for name, convert, default in plan:
                item = value.get(name, MISSING)
                if item is not MISSING:
                    items.append(convert(item))
                elif default is not MISSING:
                    items.append(default)
                else:
                    raise Mismatch("is missing")  # noqa: TRY301 - the path is added below
        except Mismatch as wrong:
            raise Mismatch(wrong.message, (name, *wrong.path)) from None
        if not names.issuperset(value):
            raise Mismatch("is not a field here", (min(set(value) - names),))
        return record(*items)

    return decode


def is_record(annotation: Any) -> bool:
    """Return whether an annotation is a Record or a dataclass."""
    if not isinstance(annotation, type):
        return False
    return issubclass(annotation, Record) or dataclasses.is_dataclass(annotation)


def fields(record: type[Any]) -> tuple[Field, ...]:
    """Return a record's fields in order, with what their annotations carry."""
    hints = get_type_hints(record, include_extras=True)
    listed = msgspec.structs.fields if issubclass(record, Record) else dataclasses.fields
    return tuple(
        [
            Field(each.name, hints[each.name], _default(each.default, each.default_factory))
            for each in listed(record)
        ]
    )


def _default(default: Any, factory: Any) -> Any:
    if factory not in {MISSING, NODEFAULT}:
        return factory()
    return MISSING if default is NODEFAULT else default


def describe(annotation: Any) -> str:
    """Name an annotation as docs/protocol.md does, such as `array (1-8) of string (1-200)`."""
    base, marks = _unwrap(annotation)
    for mark in bounds(marks):
        if mark.ge is None:
            name, of, items = describe(base).partition(" of ")
            return f"{name} ({mark.min_length}-{mark.max_length}){of}{items}"
        if mark.ge > -INT64:
            return f"{describe(base)} (>= {mark.ge})"
    origin, arguments = get_origin(base), get_args(base)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in {Union, types.UnionType}:
        return " or ".join(describe(choice) for choice in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"array of {describe(arguments[0])}"
    if origin is tuple:
        return f"array [{', '.join(describe(item) for item in arguments)}]"
    if origin is dict:
        return f"object of {describe(arguments[1])}"
    words = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    return words.get(base) or str(base.__name__)


def sentence(annotation: Any) -> str:
    """Return the documentation that an annotation carries, or an empty string."""
    _, marks = _unwrap(annotation)
    return next((mark for mark in marks if isinstance(mark, str)), "")


def bounds(marks: tuple[Any, ...]) -> list[Meta]:
    """Return the `Length` and `AtLeast` among what an annotation carries."""
    return [mark for mark in marks if isinstance(mark, Meta)]


def _unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(annotation) is Annotated:
        base, *marks = get_args(annotation)
        return base, tuple(marks)
    return annotation, ()


def _decoder(annotation: Any) -> Decoder:
    base, marks = _unwrap(annotation)
    for mark in bounds(marks):
        if mark.ge is None:
            return _with_length(_decoder(base), mark.min_length or 0, mark.max_length or INT64)
        return _with_least(_decoder(base), mark.ge)
    if base in _SCALARS:
        return _SCALARS[base]
    if is_record(base):
        return compile_decoder(base)
    return _generic(get_origin(base), get_args(base), annotation)


def _generic(origin: Any, arguments: tuple[Any, ...], annotation: Any) -> Decoder:
    if origin is Literal:
        return _literal(arguments)
    if origin in {Union, types.UnionType}:
        return _optional(arguments, annotation)
    if origin is tuple and arguments[-1] is Ellipsis:
        return _array(_decoder(arguments[0]))
    if origin is tuple:
        return _fixed(tuple(_decoder(item) for item in arguments))
    if origin is dict and arguments[0] is str:
        return _mapping(_decoder(arguments[1]))
    raise TypeError(f"no JSON form for {annotation!r}")


def _literal(choices: tuple[Any, ...]) -> Decoder:
    allowed = frozenset(choices)
    listed = ", ".join(str(choice) for choice in choices)

    def decode(value: Any) -> Any:
        if value.__class__ is str and value in allowed:
            return value
        raise Mismatch(f"expected one of {listed}, got {_short(value)}")

    return decode


def _optional(choices: tuple[Any, ...], annotation: Any) -> Decoder:
    others = [choice for choice in choices if choice is not type(None)]
    if len(others) != 1 or len(choices) != 2:
        raise TypeError(f"only unions with None have a JSON form, not {annotation!r}")
    inner = _decoder(others[0])
    return lambda value: None if value is None else inner(value)


def _array(item: Decoder) -> Decoder:
    def decode(value: Any) -> tuple[Any, ...]:
        if value.__class__ is not list:
            raise Mismatch(f"expected an array, got {_name(value)}")
        items: list[Any] = []
        try:
            items.extend(map(item, value))
        except Mismatch as wrong:
            raise Mismatch(wrong.message, (str(len(items)), *wrong.path)) from None
        return tuple(items)

    return decode


def _fixed(items: tuple[Decoder, ...]) -> Decoder:
    count = len(items)

    def decode(value: Any) -> tuple[Any, ...]:
        if value.__class__ is not list or len(value) != count:
            raise Mismatch(f"expected an array of {count} items")
        found = []
        try:
            for item, element in zip(items, value, strict=True):
                found.append(item(element))
        except Mismatch as wrong:
            raise Mismatch(wrong.message, (str(len(found)), *wrong.path)) from None
        return tuple(found)

    return decode


def _mapping(item: Decoder) -> Decoder:
    def decode(value: Any) -> dict[str, Any]:
        if value.__class__ is not dict:
            raise Mismatch(f"expected an object, got {_name(value)}")
        found = {}
        name = ""
        try:
            for name, element in value.items():
                found[name] = item(element)
        except Mismatch as wrong:
            raise Mismatch(wrong.message, (name, *wrong.path)) from None
        return found

    return decode


def _with_length(inner: Decoder, least: int, most: int) -> Decoder:
    def decode(value: Any) -> Any:
        decoded = inner(value)
        if not least <= len(decoded) <= most:
            raise Mismatch(f"expected {least} to {most} long, got {len(decoded)}")
        return decoded

    return decode


def _with_least(inner: Decoder, least: float) -> Decoder:
    def decode(value: Any) -> Any:
        decoded = inner(value)
        if decoded < least:
            raise Mismatch(f"expected at least {least}, got {decoded}")
        return decoded

    return decode


def _string(value: Any) -> str:
    if value.__class__ is str:
        return str(value)
    raise Mismatch(f"expected a string, got {_name(value)}")


def _integer(value: Any) -> int:
    if value.__class__ is int:
        if -INT64 <= value < INT64:
            return value
        raise Mismatch(f"expected an integer of 64 bits, got {value}")
    raise Mismatch(f"expected an integer, got {_name(value)}")


def _number(value: Any) -> float:
    if value.__class__ is float and math.isfinite(value):
        return value
    if value.__class__ is int:
        return float(value)
    raise Mismatch(f"expected a finite number, got {_name(value)}")


def _boolean(value: Any) -> bool:
    if value.__class__ is bool:
        return value
    raise Mismatch(f"expected true or false, got {_name(value)}")


_SCALARS: dict[Any, Decoder] = {str: _string, int: _integer, float: _number, bool: _boolean}


def _name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    names |= {int: "an integer", float: "a number", type(None): "null"}
    name: str = value.__class__.__name__
    return names.get(value.__class__, name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
