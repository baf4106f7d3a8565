from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from engine.typed import (
    AtLeast,
    Count,
    Id,
    Length,
    Mismatch,
    Seconds,
    compile_decoder,
    describe,
    sentence,
)


@dataclass(frozen=True, slots=True)
class Inner:
    name: Id
    size: Count = 0


@dataclass(frozen=True, slots=True)
class Outer:
    text: str
    ratio: float
    flag: bool
    colour: Literal["red", "blue"]
    inner: Inner
    many: tuple[Inner, ...] = ()
    pair: tuple[str, int] = ("a", 1)
    table: Annotated[dict[str, tuple[float, ...]] | None, "a table"] = None
    few: Annotated[tuple[int, ...], Length(1, 2)] = (1,)


GOOD: dict[str, Any] = {
    "text": "",
    "ratio": 1,
    "flag": True,
    "colour": "red",
    "inner": {"name": "n"},
}
decode = compile_decoder(Outer)


def test_an_object_becomes_a_record_and_defaults_fill_what_is_missing() -> None:
    assert decode(GOOD) == Outer("", 1.0, True, "red", Inner("n"))
    assert decode(GOOD).ratio.__class__ is float
    full = {"many": [{"name": "m", "size": 2}], "pair": ["b", 2], "table": {"x": [1, 2.5]}}
    expected = Outer(
        "", 1.0, True, "red", Inner("n"), (Inner("m", 2),), ("b", 2), {"x": (1.0, 2.5)}
    )
    assert decode(GOOD | full) == expected


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"text": 1}, "text", "expected a string, got an integer"),
        ({"text": None}, "text", "expected a string, got null"),
        ({"ratio": "1"}, "ratio", "expected a finite number, got a string"),
        ({"ratio": True}, "ratio", "expected a finite number, got a boolean"),
        ({"ratio": float("nan")}, "ratio", "expected a finite number, got a number"),
        ({"ratio": float("inf")}, "ratio", "expected a finite number, got a number"),
        ({"flag": 1}, "flag", "expected true or false, got an integer"),
        ({"colour": "green"}, "colour", "expected one of red, blue, got 'green'"),
        ({"colour": ["red"]}, "colour", "expected one of red, blue, got ['red']"),
        ({"inner": []}, "inner", "expected an object, got an array"),
        ({"inner": {}}, "inner.name", "is missing"),
        ({"inner": {"name": ""}}, "inner.name", "expected 1 to 200 long, got 0"),
        ({"inner": {"name": "n", "size": -1}}, "inner.size", "expected at least 0, got -1"),
        ({"inner": {"name": "n", "size": True}}, "inner.size", "expected an integer"),
        ({"inner": {"name": "n", "sise": 1}}, "inner.sise", "is not a field here"),
        ({"many": [{"name": "m"}, {}]}, "many.1.name", "is missing"),
        ({"many": {}}, "many", "expected an array, got an object"),
        ({"many": "text"}, "many", "expected an array, got a string"),
        ({"pair": ["a"]}, "pair", "expected an array of 2 items"),
        ({"pair": ["a", 1, 2]}, "pair", "expected an array of 2 items"),
        ({"pair": ["a", 1.5]}, "pair.1", "expected an integer, got a number"),
        ({"pair": ["a", 2**63]}, "pair.1", "expected an integer of 64 bits"),
        ({"table": []}, "table", "expected an object, got an array"),
        ({"table": {"x": [1], "y": ["1"]}}, "table.y.0", "expected a finite number"),
        ({"few": []}, "few", "expected 1 to 2 long, got 0"),
        ({"few": [1, 2, 3]}, "few", "expected 1 to 2 long, got 3"),
        ({"zebra": 1, "ape": 2}, "ape", "is not a field here"),
    ],
)
def test_a_mismatch_leads_to_the_value_and_says_what_is_allowed(
    changes: dict[str, Any], path: str, message: str
) -> None:
    with pytest.raises(Mismatch) as caught:
        decode(GOOD | changes)
    assert ".".join(caught.value.path) == path
    assert message in caught.value.message


@pytest.mark.parametrize("value", [None, [], "text", 1, True])
def test_only_an_object_is_a_record(value: Any) -> None:
    with pytest.raises(Mismatch, match="expected an object"):
        decode(value)


def test_a_long_value_is_not_repeated_in_full() -> None:
    with pytest.raises(Mismatch) as caught:
        decode(GOOD | {"colour": "g" * 1000})
    assert len(caught.value.message) < 120


@pytest.mark.parametrize(
    "annotation", [bytes, list[int], dict[int, str], int | str, int | str | None, object]
)
def test_an_annotation_without_a_json_form_is_refused_at_once(annotation: Any) -> None:
    record = dataclass(type("Record", (), {"__annotations__": {"field": annotation}}))
    with pytest.raises(TypeError):
        compile_decoder(record)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (str, "string"),
        (Id, "string (1-200)"),
        (Count, "integer (>= 0)"),
        (Seconds, "number (>= 0)"),
        (bool, "boolean"),
        (float | None, "number or null"),
        (Literal["red", "blue"], "`red`, `blue`"),
        (tuple[Id, ...], "array of string (1-200)"),
        (Annotated[tuple[Id, ...], Length(1, 8)], "array (1-8) of string (1-200)"),
        (tuple[str, int], "array [string, integer]"),
        (dict[str, float], "object of number"),
        (tuple[Inner, ...], "array of Inner"),
        (Annotated[int, AtLeast(1), "a sentence"], "integer (>= 1)"),
    ],
)
def test_an_annotation_is_described_as_the_document_does(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


def test_a_sentence_is_what_the_annotation_carries() -> None:
    assert sentence(Annotated[Id, "names it"]) == "names it"
    assert not sentence(Id)
    assert not sentence(str)
