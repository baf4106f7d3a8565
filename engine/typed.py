"""JSON into typed, frozen records, or a refusal that names the field.

A record's annotations are its schema: `compile_decoder(cls)` reads them once and returns a
function from a JSON object to an instance. Annotations may be str, int, float, bool, None, Literal,
unions with None, `tuple[T, ...]`, fixed tuples, `dict[str, T]`, other records, and
`Annotated[T, ...]` with `Length`, `AtLeast` and a sentence for the documentation. An object with a
key that the record lacks is refused; a key may be missing only where the record has a default.

This module knows neither messages nor sockets.
"""

import dataclasses
import math
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
Decoder = Callable[[Any], Any]
INT64 = 2**63


class Mismatch(Exception):  # noqa: N818 - always translated before it leaves the engine
    """A value that its annotation does not allow; `path` leads to it from the record's top."""

    def __init__(self, message: str, path: tuple[str, ...] = ()) -> None:
        self.path = path
        self.message = message
        super().__init__(f"{'.'.join(path)}: {message}")


@dataclass(frozen=True, slots=True)
class Length:
    """Bounds of a string in characters, or of an array in items."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The smallest number allowed."""

    least: int


Id = Annotated[str, Length(1, 200)]
Text = Annotated[str, Length(0, 20_000)]
Count = Annotated[int, AtLeast(0)]
Seconds = Annotated[float, AtLeast(0)]


def compile_decoder(record: type[Record]) -> Callable[[Any], Record]:
    """Return a function from a parsed JSON object to `record`.

    What is right takes straight-line code generated from the annotations, as dataclasses do it for
    `__init__`; whatever that refuses is decoded again field by field, to name the place.

    Raises: TypeError at once, if an annotation is not one of those listed above. The function
    returned raises Mismatch.
    """
    careful = _careful(record)
    fast: Callable[[Any], Record] = _fast(record)

    def decode(value: Any) -> Record:
        try:
            return fast(value)
        except (_Refused, KeyError, TypeError, Mismatch):
            return careful(value)

    return decode


class _Refused(Exception):  # noqa: N818 - never leaves this module
    pass


def _careful(record: type[Record]) -> Callable[[Any], Record]:
    hints = get_type_hints(record, include_extras=True)
    plan = tuple(
        (field.name, _decoder(hints[field.name]), _default(field))
        for field in dataclasses.fields(record)  # type: ignore[arg-type]
    )
    names = frozenset(name for name, _, _ in plan)

    def decode(value: Any) -> Record:
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


def _fast(record: type[Any]) -> Callable[[Any], Any]:
    hints = get_type_hints(record, include_extras=True)
    scope: dict[str, Any] = {"refused": _Refused, "missing": MISSING}
    lines = ["def decode(value):", " if value.__class__ is not dict: raise refused", " found = 0"]
    arguments = []
    for number, field in enumerate(dataclasses.fields(record)):
        name, default = f"v{number}", _default(field)
        scope[f"default{number}"] = default
        arguments.append(name)
        if default is MISSING:
            lines.append(f" {name} = value[{field.name!r}]; found += 1")
            lines += _indented(_checks(hints[field.name], name, number, scope))
        else:
            lines.append(f" {name} = value.get({field.name!r}, missing)")
            lines.append(f" if {name} is missing: {name} = default{number}")
            lines += [" else:", "  found += 1"]
            lines += _indented(_indented(_checks(hints[field.name], name, number, scope)))
    lines.append(" if len(value) != found: raise refused")
    lines.append(f" return record({', '.join(arguments)})")
    scope["record"] = record
    exec("\n".join(lines), scope)  # noqa: S102 - made of this program's own annotations
    made: Callable[[Any], Any] = scope["decode"]
    return made


def _checks(annotation: Any, name: str, number: int, scope: dict[str, Any]) -> list[str]:
    """Return the lines that check the variable `name` and replace it by its decoded value."""
    base, marks = _unwrap(annotation)
    bounds = [mark for mark in marks if isinstance(mark, Length | AtLeast)]
    origin, arguments = get_origin(base), get_args(base)
    if base in {int, str, bool, float}:
        whole = [f"if {name}.__class__ is int: {name} = float({name})"] if base is float else []
        return [*whole, f"if {_is_wrong(base, name, bounds)}: raise refused"]
    if origin is Literal:
        scope[f"allowed{number}"] = frozenset(arguments)
        return [f"if {name} not in allowed{number}: raise refused"]
    if origin in {Union, types.UnionType} and not bounds:
        inner = next(choice for choice in arguments if choice is not type(None))
        return [f"if {name} is not None:", *_indented(_checks(inner, name, number, scope))]
    if origin is tuple and arguments[-1] is Ellipsis:
        scope[f"item{number}"] = _item(arguments[0])
        wrong = _is_wrong(list, name, bounds)
        return [f"if {wrong}: raise refused", f"{name} = tuple(map(item{number}, {name}))"]
    scope[f"decode{number}"] = _item(base) if not bounds else _decoder(annotation)
    return [f"{name} = decode{number}({name})"]


def _item(annotation: Any) -> Decoder:
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _fast(annotation)
    return _decoder(annotation)


def _indented(lines: list[str]) -> list[str]:
    return [f" {line}" for line in lines]


def _is_wrong(base: type, name: str, bounds: list[Length | AtLeast]) -> str:
    wrong = f"{name}.__class__ is not {base.__name__}"
    least = -INT64
    for bound in bounds:
        if isinstance(bound, AtLeast):
            least = bound.least
        else:
            wrong += f" or not {bound.least} <= len({name}) <= {bound.most}"
    if base is int:
        return f"{wrong} or not {least} <= {name} < {INT64}"
    if base is float:
        below = f" or {name} < {least}" if bounds else ""
        return f"{wrong} or {name} - {name} != 0.0{below}"
    return wrong


def describe(annotation: Any) -> str:
    """Name an annotation as docs/protocol.md does, such as `array (1-8) of string (1-200)`."""
    base, marks = _unwrap(annotation)
    for mark in marks:
        if isinstance(mark, Length):
            name, of, items = describe(base).partition(" of ")
            return f"{name} ({mark.least}-{mark.most}){of}{items}"
        if isinstance(mark, AtLeast):
            return f"{describe(base)} (>= {mark.least})"
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


def _unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(annotation) is Annotated:
        base, *marks = get_args(annotation)
        return base, tuple(marks)
    return annotation, ()


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _decoder(annotation: Any) -> Decoder:
    base, marks = _unwrap(annotation)
    for mark in marks:
        if isinstance(mark, Length):
            return _with_length(_decoder(base), mark)
        if isinstance(mark, AtLeast):
            return _with_least(_decoder(base), mark)
    if base in _SCALARS:
        return _SCALARS[base]
    if dataclasses.is_dataclass(base) and isinstance(base, type):
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


def _with_length(inner: Decoder, bounds: Length) -> Decoder:
    least, most = bounds.least, bounds.most

    def decode(value: Any) -> Any:
        decoded = inner(value)
        if not least <= len(decoded) <= most:
            raise Mismatch(f"expected {least} to {most} long, got {len(decoded)}")
        return decoded

    return decode


def _with_least(inner: Decoder, bound: AtLeast) -> Decoder:
    least = bound.least

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
