"""Topology files: read one into a Topology, or show one with every default filled in.

Job: `load` runs text, keys and rules past the file, and builds records only if all are content.
Does not know: how a text, a key or a rule is checked (yaml_lines, reader, rules).
Invariants: every problem of a file is reported at once; what `resolved_yaml` prints, loads again
as an equal topology.
"""

import os
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..errors import Problem, TopologyError
from .fields import TOPOLOGY
from .reader import Values, read_topology, show_bytes
from .records import (
    BackendSpec,
    BrokerSpec,
    Host,
    Limits,
    MetricsSpec,
    Placement,
    RouterSpec,
    SandboxSpec,
    Stage,
    Timeouts,
    Topology,
    TracesSpec,
)
from .rules import apply_rules, home_host, placements
from .shapes import Bytes, Field, Many, Named, One, Options, Section, Workers
from .yaml_lines import Source, parse

FORMAT_VERSION = 1
Record = TypeVar("Record")


def load(path: str | Path) -> Topology:
    """Read a topology file and check all of it.

    Raises:
        TopologyError: anything is wrong; it names every place, with file and line.

    """
    file = Path(path).absolute()
    return load_text(_text(file, str(path)), file, str(path))


def load_text(text: str, file: Path, shown: str) -> Topology:
    """Read the text of a topology as if it stood in `file`, and check all of it.

    shown: what problems call it.

    Raises:
        TopologyError: anything is wrong.

    """
    source = parse(text, shown)
    values = _values(source, file)
    if source.problems or values is None:
        raise TopologyError(sorted(source.problems, key=lambda problem: problem.line))
    return _topology(values, file)


def resolved(topology: Topology) -> dict[str, Any]:
    """Return a topology as its file would say it with every default written out; JSON-able.

    Quantities of bytes are integers; `run_dir` is absolute.
    """
    return {"version": FORMAT_VERSION, **_shown(TOPOLOGY, topology, bytes_as_text=False)}


def readable(topology: Topology) -> dict[str, Any]:
    """Return the same with quantities of bytes as people write them."""
    return {"version": FORMAT_VERSION, **_shown(TOPOLOGY, topology, bytes_as_text=True)}


def resolved_yaml(topology: Topology) -> str:
    """Return the same as YAML, quantities of bytes as people write them."""
    return yaml.safe_dump(readable(topology), sort_keys=False, allow_unicode=True, width=100)


def _text(file: Path, shown: str) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise TopologyError([Problem(shown, line, "", "not UTF-8 text")]) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problem = Problem(shown, 1, "", f"cannot be read: {reason}")
        raise TopologyError([problem]) from error


def _values(source: Source, file: Path) -> Values | None:
    values = read_topology(source)
    if values is None:
        return None
    beside = values["beside"] = Path(os.path.normpath(file.parent / (values["beside"] or ".")))
    if values["run_dir"] is not None:
        values["run_dir"] = Path(os.path.normpath(beside / values["run_dir"]))
    if values["keys"] is not None:
        values["keys"] = Path(os.path.normpath(beside / values["keys"]))
    apply_rules(values, source)
    return values


def _topology(values: Values, file: Path) -> Topology:
    home = home_host(values)
    assert home is not None
    return Topology(
        path=file,
        hosts=tuple(Host(name, **host) for name, host in values["hosts"].items()),
        broker=BrokerSpec(**{**values["broker"], "host": home}),
        limits=Limits(**values["limits"]),
        timeouts=_timeouts(values["timeouts"]),
        stages=_stages(values["stages"], values["hosts"]),
        router=_router(values["router"], home),
        backends=tuple(_backend(backend, home) for backend in values["backends"]),
        sandboxes=_sandboxes(values["sandboxes"], values["beside"]),
        **{
            name: values[name]
            for name in ("beside", "name", "run_dir", "durability", "insecure", "keys")
        },
        log_level=values["log_level"],
        filters=values["filters"],
        metrics=_one(MetricsSpec, values["metrics"]),
        traces=_one(TracesSpec, values["traces"]),
    )


def _timeouts(values: Values) -> Timeouts:
    lease_s = values["lease_s"] or 3 * values["heartbeat_s"]
    return Timeouts(**{**values, "lease_s": lease_s})


def _stages(stages: list[Values], hosts: Iterable[str]) -> tuple[Stage, ...]:
    found: list[Stage] = []
    most_before = 0
    for values in stages:
        placed = placements(values, hosts)
        most = values["slots"] * max(placed.values())
        ready = values["ready"] or max(most, most_before)  # less, and slots before it never fill
        workers = tuple(Placement(host, count) for host, count in placed.items())
        found.append(Stage(**{**values, "workers": workers, "ready": ready}))
        most_before = most
    return tuple(found)


def _router(values: Values | None, home: str) -> RouterSpec | None:
    if values is None:
        return None
    return RouterSpec(**{**values, "host": values["host"] or home})


def _backend(values: Values, home: str) -> BackendSpec:
    return BackendSpec(**{**values, "host": values["host"] or home})


def _sandboxes(values: Values | None, beside: Path) -> SandboxSpec | None:
    if values is None:
        return None
    images = {name: os.path.normpath(beside / path) for name, path in values["images"].items()}
    return SandboxSpec(**{**values, "images": images})


def _one(kind: type[Record], values: Values | None) -> Record | None:
    return None if values is None else kind(**values)


def _shown(section: Section, record: object, *, bytes_as_text: bool) -> dict[str, Any]:
    return {
        field.name: _shown_field(field, getattr(record, field.name), bytes_as_text=bytes_as_text)
        for field in section.fields
        if hasattr(record, field.name)
    }


def _shown_field(field: Field, value: Any, *, bytes_as_text: bool) -> Any:
    shown: Any = str(value) if isinstance(value, Path) else value
    match field.shape, value:
        case Bytes(), int():
            shown = show_bytes(value) if bytes_as_text else value
        case One(section), _ if value is not None:
            shown = _shown(section, value, bytes_as_text=bytes_as_text)
        case Many(section), _:
            shown = [_shown(section, each, bytes_as_text=bytes_as_text) for each in value]
        case Named(section), _:
            shown = {
                each.name: _shown(section, each, bytes_as_text=bytes_as_text) for each in value
            }
        case Options(), _:
            shown = deepcopy(value)
        case Workers(), _:
            shown = {placement.host: placement.count for placement in value}
    return shown
