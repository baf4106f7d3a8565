"""YAML text as plain values, with the line of each; every fault of the text itself is collected.

Job: refuse what YAML allows and a configuration should not: keys given twice, keys that are not
text, anchors and aliases, tags of objects.
Does not know: which keys a topology has.
Invariants: no object is ever constructed from a tag; every place in `lines` exists in `plain`,
or was refused; a value that was refused is INVALID, so that nobody reports it twice.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import yaml

from ..errors import Problem

Place = tuple[str | int, ...]

_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_LARGEST_INTEGER_BITS = 64


class Invalid(Enum):
    """The type of INVALID, the value of a place that was refused."""

    INVALID = "invalid"


INVALID: Final = Invalid.INVALID


@dataclass(slots=True)
class Source:
    """A file's plain values, where they stand, and what is wrong with them so far."""

    file: str
    plain: object = INVALID
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    refused: set[Place] = field(default_factory=set)

    def refuse(self, place: Place, message: str) -> None:
        """Note that a place is wrong; its line is its own, or that of what it belongs to."""
        self.refused.add(place)
        self.fault(self._line(place), message, spell(place))

    def fault(self, line: int, message: str, key: str = "") -> None:
        """Note that a line is wrong."""
        self.problems.append(Problem(self.file, line, key, message))

    def _line(self, place: Place) -> int:
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def spell(place: Place) -> str:
    """Return a place as people write it: `stages[0].slots`."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def parse(text: str, file: str) -> Source:
    """Return the plain values of a YAML text; its faults are in the source's problems."""
    source = Source(file)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        source.plain = {} if root is None else _Reading(source).plain(root, ())
    except yaml.YAMLError as error:
        source.fault(*_syntax_fault(error))
    except RecursionError:
        source.fault(1, "nested too deeply")
    except (ValueError, OverflowError) as error:
        source.fault(1, f"not YAML: {error}")
    return source


@dataclass(slots=True)
class _Reading:
    source: Source
    seen: set[int] = field(default_factory=set)

    def plain(self, node: yaml.Node, place: Place) -> object:
        self.source.lines.setdefault(place, node.start_mark.line + 1)
        if id(node) in self.seen:
            return self._refused(place, "aliases are not allowed: repeat the value")
        self.seen.add(id(node))
        match node:
            case yaml.MappingNode(tag="tag:yaml.org,2002:map"):
                return self._mapping(node, place)
            case yaml.SequenceNode(tag="tag:yaml.org,2002:seq"):
                return [self.plain(item, (*place, i)) for i, item in enumerate(node.value)]
            case yaml.ScalarNode():
                return self._scalar(node, place)
            case _:
                return self._refused(place, f"the tag {node.tag} is not allowed")

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag != "tag:yaml.org,2002:str":
                name = f"quote {key_node.value!r}" if _is_scalar(key_node) else "not a collection"
                self.source.fault(line, f"a key must be text: {name}", spell(place))
                continue
            key = (*place, key_node.value)
            if key_node.value in values:
                self.source.fault(
                    line, f"given twice, first in line {self.source.lines[key]}", spell(key)
                )
                continue
            self.source.lines[key] = line
            values[key_node.value] = self.plain(value_node, key)
        return values

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> object:
        if node.tag == _TIMESTAMP:
            return node.value
        if node.tag not in _SCALARS:
            return self._refused(place, f"the tag {node.tag} is not allowed")
        try:
            return _scalar_value(node)
        except (ValueError, KeyError, IndexError, OverflowError):
            return self._refused(place, f"not a valid {node.tag.rpartition(':')[2]}")

    def _refused(self, place: Place, message: str) -> Invalid:
        self.source.refuse(place, message)
        return INVALID


def _scalar_value(node: yaml.ScalarNode) -> object:
    value: object = yaml.constructor.SafeConstructor().construct_object(node)
    match value:
        case str():
            value.encode()
        case int() if value.bit_length() > _LARGEST_INTEGER_BITS:
            raise ValueError(f"more than {_LARGEST_INTEGER_BITS} bits")
    return value


def _is_scalar(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode)


def _syntax_fault(error: yaml.YAMLError) -> tuple[int, str]:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        parts = [part for part in (error.context, error.problem) if part]
        return (mark.line + 1 if mark else 1), f"not YAML: {'; '.join(parts)}"
    return 1, f"not YAML: {' '.join(str(error).split())}"
