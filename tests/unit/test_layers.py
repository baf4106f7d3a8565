"""The tree is the architecture: which way imports run, and how large anything may be."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ENGINE = sorted((ROOT / "engine").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
SOURCES = [*ENGINE, *NODES]

LAYERS = (
    {"errors", "typed", "process", "logs", "files", "figures"},
    {"records"},
    {"trajectories"},
    {"topology"},
    {"graph", "reread", "children"},
    {"sampling"},
    {"messages"},
    {"wire"},
    {"arrays"},
    {"security"},
    {"sockets"},
    {"presence"},
    {"ledger"},
    {"protocol_doc"},
    {"journal"},
    {"client"},
    {"adapters"},
    {"supervisor"},
    {"summary", "output", "backends", "keys", "seeing", "apply"},
    {"display"},
    {"run"},
    {"slurm"},
    {"cli"},
    {"__init__"},
)
"""Each layer may import from those above it, and from nothing beside or below it."""

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MOST_LINES, MOST_FUNCTION_LINES = 500, 60
FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}


def module(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def functions(path: Path) -> dict[str, int]:
    """Return the length in lines of each function of a file."""
    return {
        f"{node.name}, line {node.lineno}": (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@cache
def imported(path: Path) -> tuple[tuple[str, ...], ...]:
    """Return what a file imports: paths of names that end in a module or in a name of one."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[tuple[str, ...]]:
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = tuple(node.module.split(".")) if node.module else ()
            yield from ((*base, *name, alias.name) for alias in node.names)


def unit(path: Path) -> str:
    return path.relative_to(ROOT / "engine").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: "/".join(module(path)))
def test_the_engine_never_imports_the_nodes(path: Path) -> None:
    assert not [names for names in imported(path) if names[0] == "nodes"]


def test_every_module_of_the_engine_has_a_layer() -> None:
    assert {unit(path) for path in ENGINE} == set(RANK)


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: "/".join(module(path)))
def test_imports_within_the_engine_run_one_way(path: Path) -> None:
    mine = unit(path)
    for names in imported(path):
        if names[0] == "engine" and names[1] != mine:
            assert RANK[names[1]] < RANK[mine], f"{mine} imports {names[1]}"


def test_there_are_no_cycles() -> None:
    known = {module(path): path for path in SOURCES}
    graph = {
        name: {
            found
            for names in imported(path)
            for found in (names, names[:-1])
            if found in known and found != name
        }
        for name, path in known.items()
        if path.name != "__init__.py" or not list(imported(path))
    }
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(module(path)))
def test_nothing_unpickles(path: Path) -> None:
    assert not {names[0] for names in imported(path)} & FORBIDDEN
    text = path.read_text(encoding="utf-8")
    assert not [word for word in ("send_pyobj", "recv_pyobj", "allow_pickle=True") if word in text]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(module(path)))
def test_no_file_and_no_function_is_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert not {name: n for name, n in functions(path).items() if n > MOST_FUNCTION_LINES}


def test_functions_are_mostly_short() -> None:
    lengths = sorted(n for path in SOURCES for n in functions(path).values())
    assert lengths[len(lengths) * 9 // 10] < 35


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(module(path)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree(path))
