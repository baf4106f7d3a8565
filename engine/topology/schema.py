"""The JSON schema and the reference tables of topology.yaml, both derived from its table of keys.

Job: `python -m engine.topology.schema` rewrites engine/topology.schema.json and the tables in
docs/topology.md; a test proves that both are current.
Does not know: rules that join several keys; a schema cannot say them, and `load` checks them.
Invariants: what `load` takes, the schema takes.
"""

import json
from pathlib import Path
from typing import Any

from .fields import SECTIONS, TOPOLOGY
from .reader import expected
from .shapes import (
    BYTES_TEXT,
    Bytes,
    Choice,
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

SCHEMA_FILE = Path(__file__).parent.with_name("topology.schema.json")
REFERENCE_FILE = Path(__file__).parent.parent.parent / "docs" / "topology.md"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 7, which editors know best) of a topology file."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "rollmq topology",
        **_section_schema(TOPOLOGY),
    }


def schema_text() -> str:
    """Return the schema as it is kept in the file."""
    return json.dumps(json_schema(), indent=2) + "\n"


def with_tables(page: str) -> str:
    """Return a page whose tables of keys, between their markers, are current.

    Raises:
        ValueError: the markers of a section are missing.

    """
    for section in SECTIONS:
        begin, end = f"<!-- keys: {section.name} -->", f"<!-- end: {section.name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page needs {begin} and {end}, once each")
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        page = f"{before}{begin}\n\n{_table(section)}\n\n{end}{after}"
    return page


def main() -> None:
    """Rewrite the schema and the tables."""
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
    page = REFERENCE_FILE.read_text(encoding="utf-8")
    REFERENCE_FILE.write_text(with_tables(page), encoding="utf-8")


def _section_schema(section: Section) -> dict[str, Any]:
    schema = {
        "type": "object",
        "description": section.doc,
        "properties": {field.name: _field_schema(field) for field in section.fields},
        "additionalProperties": False,
    }
    required = [field.name for field in section.fields if isinstance(field.default, Required)]
    return schema | ({"required": required} if required else {})


def _field_schema(field: Field) -> dict[str, Any]:
    schema = _shape_schema(field.shape)
    if field.default is None:
        schema = {"anyOf": [schema, {"type": "null"}]}
    schema["description"] = _described(field)
    if not isinstance(field.default, Required | Derived):
        schema["default"] = field.default
    return schema


def _described(field: Field) -> str:
    parts = [field.doc]
    if isinstance(field.default, Derived):
        parts.append(f"Default: {field.default.rule}.")
    return " ".join(parts)


def _shape_schema(shape: Shape) -> dict[str, Any]:
    match shape:
        case One(section):
            return _section_schema(section)
        case Many(section, minimum):
            return {"type": "array", "items": _section_schema(section), "minItems": minimum}
        case Named(section, name):
            return _mapping_schema(_section_schema(section)) | {"propertyNames": _matching(name)}
        case Workers(each):
            return {"anyOf": [_scalar_schema(each), _mapping_schema(_scalar_schema(each))]}
        case Options():
            return {"type": "object"}
        case _:
            return _scalar_schema(shape)


def _mapping_schema(values: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "minProperties": 1, "additionalProperties": values}


def _scalar_schema(shape: Scalar) -> dict[str, Any]:
    match shape:
        case Integer(minimum, maximum):
            return {"type": "integer", "minimum": minimum, "maximum": maximum}
        case Seconds(minimum, maximum) | Share(minimum, maximum):
            return {"type": "number", "minimum": minimum, "maximum": maximum}
        case Bytes(minimum, maximum):
            count = {"type": "integer", "minimum": minimum, "maximum": maximum}
            return {"anyOf": [count, {"type": "string", "pattern": f"^{BYTES_TEXT}$"}]}
        case Text():
            return _matching(shape)
        case Choice(names):
            return {"enum": list(names)}
        case Flag():
            return {"type": "boolean"}


def _matching(text: Text) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{text.pattern}$"}


def _table(section: Section) -> str:
    head = "| key | value | default, and why | meaning |\n| --- | --- | --- | --- |"
    return "\n".join([head, *(_row(field) for field in section.fields)])


def _row(field: Field) -> str:
    value = _cell(expected(field.shape))
    return f"| `{field.name}` | {value} | {_default(field)} | {_cell(field.doc)} |"


def _default(field: Field) -> str:
    match field.default:
        case Required():
            return "required"
        case Derived(rule):
            shown = rule
        case None:
            shown = "none"
        case tuple():
            shown = "`[]`"
        case str():
            shown = f"`{field.default}`"
        case _:
            shown = f"`{json.dumps(field.default)}`"
    return f"{shown}. {_cell(field.why)}" if field.why else shown


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
