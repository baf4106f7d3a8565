"""What a key of topology.yaml can hold, and what is said of each key.

Job: the vocabulary in which `topology_fields` writes its table.
Does not know: any key, YAML, or how a value is checked.
Invariants: every number has a minimum and a maximum.
"""

from dataclasses import dataclass

BYTE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
BYTES_TEXT = rf"([0-9]{{1,15}}(?:\.[0-9]{{1,6}})?) ?({'|'.join(BYTE_UNITS)})"

_PEBIBYTE = 2**50


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number within bounds, both included."""

    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class Seconds:
    """A duration within bounds, both included."""

    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Bytes:
    """A quantity of bytes within bounds: a whole number, or text such as 64MiB."""

    minimum: int
    maximum: int = _PEBIBYTE


@dataclass(frozen=True, slots=True)
class Share:
    """A number from 0 to 1."""

    minimum: float = 0.0
    maximum: float = 1.0


@dataclass(frozen=True, slots=True)
class Text:
    """Text that matches a pattern as a whole; `meaning` is the pattern in words."""

    pattern: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few names."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Workers:
    """A number of workers, or a mapping of hosts to numbers."""

    each: Integer


@dataclass(frozen=True, slots=True)
class Options:
    """A mapping that belongs to whoever is configured; any keys and values."""


@dataclass(frozen=True, slots=True)
class One:
    """One section, as a mapping."""

    section: "Section"


@dataclass(frozen=True, slots=True)
class Many:
    """A list of sections, at least `minimum` long."""

    section: "Section"
    minimum: int


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping of names to sections, at least one; `name` says what a name looks like."""

    section: "Section"
    name: Text


Scalar = Integer | Seconds | Bytes | Share | Text | Flag | Choice
Collection = Workers | Options | One | Many | Named
Shape = Scalar | Collection


@dataclass(frozen=True, slots=True)
class Required:
    """In place of a default: the key must be given."""


@dataclass(frozen=True, slots=True)
class Derived:
    """In place of a default: it follows from other keys, as `rule` says."""

    rule: str


REQUIRED = Required()


@dataclass(frozen=True, slots=True)
class Field:
    """One key: `doc` says what it means, `why` justifies its default."""

    name: str
    shape: Shape
    doc: str
    default: object = REQUIRED
    why: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """The keys of one mapping."""

    name: str
    doc: str
    fields: tuple[Field, ...]
