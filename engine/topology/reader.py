"""Plain values checked against the table of `topology_fields`; every fault is collected.

Job: fill in defaults and turn plain values into the table's: bytes as integers, seconds as floats.
Does not know: YAML, or rules that join several keys.
Invariants: each value in what is returned satisfies its shape; None stands for a value that was
refused, derives from others, or was left out where leaving it out means none.
"""

import math
import re
from collections.abc import Iterable
from copy import deepcopy
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

from .fields import TOPOLOGY
from .shapes import (
    BYTE_UNITS,
    BYTES_TEXT,
    Bytes,
    Choice,
    Collection,
    Derived,
    Field,
    Flag,
    Integer,
    Many,
    Named,
    One,
    Options,
    Required,
    Scalar,
    Seconds,
    Section,
    Shape,
    Share,
    Text,
    Workers,
)
from .yaml_lines import INVALID, Place, Source

Values = dict[str, Any]


def read_topology(source: Source) -> Values | None:
    """Return a topology's values by section and name; None if the file is no mapping.

    Faults go to `source`.
    """
    values: Values | None = _read(source, source.plain, One(TOPOLOGY), ())
    return values


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return a hint to append to a refusal, or nothing if no allowed name is close."""
    close = get_close_matches(name, list(allowed), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def show_bytes(count: int) -> str:
    """Return a byte count exactly, in the largest binary unit that divides it: 64MiB."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count and count % BYTE_UNITS[unit] == 0:
            return f"{count // BYTE_UNITS[unit]}{unit}"
    return f"{count}B"


class _Unfit(Exception):  # noqa: N818 - never leaves this module
    """A value that does not have its shape."""


def _read(source: Source, given: object, shape: Shape, place: Place) -> Any:
    if given is INVALID:
        return None
    try:
        match shape:
            case One() | Many() | Named() | Workers() | Options():
                return _collection(source, given, shape, place)
            case _:
                return _scalar(given, shape)
    except _Unfit as unfit:
        source.refuse(place, str(unfit))
        return None


def _scalar(given: object, shape: Scalar) -> Any:
    match shape, given:
        case (Text(pattern), str()) if re.fullmatch(pattern, given):
            return given
        case (Choice(names), str()):
            if given not in names:
                raise _Unfit(f"{_mismatch(shape, given)}{did_you_mean(given, names)}")
            return given
        case Flag(), bool():
            return given
        case ((Integer() | Seconds() | Bytes() | Share()), _):
            number = _number(given, shape)
            if number is not None and shape.minimum <= number <= shape.maximum:
                return number
    raise _Unfit(_mismatch(shape, given))


def _number(given: object, shape: Integer | Seconds | Bytes | Share) -> int | float | None:
    match shape, given:
        case _, bool():
            return None
        case Bytes(), str():
            return _byte_count(given)
        case ((Seconds() | Share()), (int() | float())):
            return float(given) if abs(given) <= shape.maximum else None
        case _, int():
            return given
        case _:
            return None


def _byte_count(text: str) -> int | None:
    match = re.fullmatch(BYTES_TEXT, text)
    if match is None:
        return None
    count = Fraction(match[1]) * BYTE_UNITS[match[2]]
    return count.numerator if count.denominator == 1 else None


def _collection(source: Source, given: object, shape: Collection, place: Place) -> Any:
    match shape, given:
        case One(section), dict():
            return _section(source, given, section, place)
        case Many(section, minimum), (list() | tuple()) if len(given) >= minimum:
            return [_read(source, each, One(section), (*place, i)) for i, each in enumerate(given)]
        case Named(section, name), dict() if given:
            return _named(source, given, One(section), name, place)
        case Workers(each), dict() if given:
            return _named(source, given, each, Text(".*", "a host's name"), place)
        case Workers(each), int():
            return _scalar(given, each)
        case Options(), dict():
            _refuse_non_finite(source, given, place)
            return deepcopy(given)
    raise _Unfit(_mismatch(shape, given))


def _section(source: Source, given: Values, section: Section, place: Place) -> Values:
    names = [field.name for field in section.fields]
    for name in given.keys() - set(names):
        allowed = f"allowed: {', '.join(names)}"
        source.refuse((*place, name), f"unknown key{did_you_mean(name, names)}; {allowed}")
    return {field.name: _field(source, given, field, place) for field in section.fields}


def _field(source: Source, given: Values, field: Field, place: Place) -> Any:
    value = given.get(field.name, field.default)
    if isinstance(value, Required):
        source.refuse((*place, field.name), f"missing: {field.doc}")
        return None
    if isinstance(value, Derived) or (value is None and field.default is None):
        return None
    return _read(source, value, field.shape, (*place, field.name))


def _named(source: Source, given: Values, shape: Shape, name: Text, place: Place) -> Values:
    for key in given:
        _read(source, key, name, (*place, key))
    return {key: _read(source, value, shape, (*place, key)) for key, value in given.items()}


def _refuse_non_finite(source: Source, given: object, place: Place) -> None:
    match given:
        case float() if not math.isfinite(given):
            source.refuse(place, "expected a finite number")
        case dict():
            for key, value in given.items():
                _refuse_non_finite(source, value, (*place, key))
        case list():
            for i, value in enumerate(given):
                _refuse_non_finite(source, value, (*place, i))


def expected(shape: Shape) -> str:
    """Return a shape in words, for refusals and the reference."""
    match shape:
        case Integer() | Seconds() | Bytes() | Share():
            return _expected_number(shape)
        case Workers(each):
            return f"{_expected_number(each)}, or a mapping of hosts to such numbers"
        case Choice(names):
            return f"one of {', '.join(names)}"
        case Text(_, meaning):
            return meaning
        case Many(_, minimum):
            return "a list" if minimum == 0 else f"a list of at least {minimum}"
        case _:
            return "true or false" if isinstance(shape, Flag) else "a mapping"


def _expected_number(shape: Integer | Seconds | Bytes | Share) -> str:
    match shape:
        case Integer(minimum, maximum) if minimum == maximum:
            return str(minimum)
        case Integer(minimum, maximum):
            return f"a whole number from {minimum} to {maximum}"
        case Seconds(minimum, maximum):
            return f"seconds from {minimum:.9g} to {maximum:.9g}"
        case Share(minimum, maximum):
            return f"a number from {minimum:g} to {maximum:g}"
        case Bytes(minimum, maximum):
            return f"bytes, such as 64MiB, from {show_bytes(minimum)} to {show_bytes(maximum)}"


def _mismatch(shape: Shape, given: object) -> str:
    return f"expected {expected(shape)}, got {_show(given)}"


def _show(given: object) -> str:
    match given:
        case None:
            return "nothing"
        case bool():
            return str(given).lower()
        case int() | float():
            return f"the number {given}"
        case str():
            return f"the text {given[:60]!r}"
        case _:
            kind = "mapping" if isinstance(given, dict) else "list"
            return f"a {kind}" if given else f"an empty {kind}"
