"""Instances of kind `swe` from a real package's source distribution: one mutation that a test sees.

Job: change one operator or constant of the package, run its own tests, keep what makes some fail.
Does not know: how tests run (`swe_repository`), or who solves an instance.
Invariants: the same source, count and seed give the same instances, as far as the tests say the
same each time. FAIL_TO_PASS passed before the mutation and failed after it; PASS_TO_PASS passed
both times. A task's `demonstration`, beside its payload, is what undoes the mutation, for policies
that are scripted.
"""

import io
import keyword
import random
import tarfile
import tokenize
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..sandboxes.contract import Sandbox
from .swe_repository import UNPACKED, Repository

PAIRS = (("<", "<="), (">", ">="), ("==", "!="), ("+", "-"), ("and", "or"), ("True", "False"))
SWAPS = {old: new for a, b in PAIRS for old, new in ((a, b), (b, a))}
SWAPS |= {"0": "1", "1": "2", "//": "/"}
MOST_FAILING = 40  # tests; more would be an issue that nobody needs to look for
TRIES = 40  # for each instance
TEST_CPU_S = 120.0
Open = Callable[[], AbstractAsyncContextManager[Sandbox]]


@dataclass(frozen=True, slots=True)
class Mutation:
    """One token of one file, and what takes its place; `line` counts from 1, columns from 0."""

    path: str
    line: int
    column: int
    old: str
    new: str

    def changed(self, text: str) -> str:
        """Return the file's text with the mutation."""
        lines = text.splitlines(keepends=True)
        line = lines[self.line - 1]
        lines[self.line - 1] = line[: self.column] + self.new + line[self.column + len(self.old) :]
        return "".join(lines)


@dataclass(frozen=True, slots=True)
class Package:
    """A source distribution: its archive, the Python files that may be mutated, and its tests."""

    name: str
    archive: Path
    sources: dict[str, str]
    tests: tuple[str, ...]


def read_package(archive: Path) -> Package:
    """Read a source distribution.

    Raises: ValueError if it has no sources or no tests; tarfile.TarError, OSError.
    """
    sources, tests = {}, []
    with tarfile.open(archive) as opened:
        for member in opened:
            path = member.name.partition("/")[2]
            if not member.isfile() or not path.endswith(".py"):
                continue
            name = path.rpartition("/")[2]
            if name.startswith("test_") or name.endswith("_test.py"):
                tests.append(path)
            elif "/" in path and not {"tests", "test", "docs", "doc"} & set(path.split("/")):
                file = opened.extractfile(member)
                assert file is not None
                sources[path] = file.read().decode("utf-8", "replace")
    if not (sources and tests):
        raise ValueError(f"{archive}: {len(sources)} sources and {len(tests)} tests to work with")
    name = archive.name.removesuffix(".tar.gz")
    return Package(name, archive, sources, tuple(sorted(tests)))


def mutations(path: str, text: str) -> Iterator[Mutation]:
    """Yield every mutation of a file: of tokens inside indented code, so of functions mostly."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return
    depth = 0
    for token in tokens:
        depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        is_code = token.type in {tokenize.OP, tokenize.NUMBER} or keyword.iskeyword(token.string)
        if depth and is_code and token.string in SWAPS:
            new = SWAPS[token.string]
            yield Mutation(path, token.start[0], token.start[1], token.string, new)


async def make(
    package: Package, count: int, seed: int, open_sandbox: Open, out: Path
) -> AsyncIterator[dict[str, Any]]:
    """Yield at most `count` tasks; their archives are written into the directory `out`.

    Raises: ValueError if the package's tests do not pass as they are; BoundaryError("sandbox").
    """
    whole = await _outcomes(package, None, open_sandbox)
    good = {name for name, outcome in whole.items() if outcome == "passed"}
    if not good:
        raise ValueError(f"{package.archive}: no test of it passes here")
    found = [
        each for path, text in sorted(package.sources.items()) for each in mutations(path, text)
    ]
    random.Random(seed).shuffle(found)  # noqa: S311 - has to be repeatable
    made = 0
    for mutation in found[: TRIES * count]:
        if made == count:
            return
        after = await _outcomes(package, mutation, open_sandbox)
        failing = sorted(name for name in good if after.get(name) not in {None, "passed"})
        passing = sorted(name for name in good if after.get(name) == "passed")
        if failing and len(failing) <= MOST_FAILING and len(failing) + len(passing) == len(good):
            made += 1
            yield _task(package, mutation, failing, passing, out / f"{package.name}-{seed}-{made}")


async def _outcomes(
    package: Package, mutation: Mutation | None, open_sandbox: Open
) -> dict[str, str]:
    async with open_sandbox() as sandbox:
        repository = Repository(sandbox)
        await repository.prepare(str(package.archive), "")
        if mutation is not None:
            text = mutation.changed(package.sources[mutation.path])
            await repository.write(mutation.path, text.encode())
        return await repository.outcomes(package.tests, TEST_CPU_S)


def _task(
    package: Package, mutation: Mutation, failing: list[str], passing: list[str], stem: Path
) -> dict[str, Any]:
    archive = stem.with_name(f"{stem.name}.tar.gz")
    _rewrite(package, mutation, archive)
    listed = "\n".join(f"- {name}" for name in failing[:10])
    statement = (
        f"{stem.name}: some functions give wrong results since the last change of the code. "
        f"These tests fail:\n{listed}\nFind the cause in the code and repair it."
    )
    return {
        "task_id": stem.name,
        "kind": "swe",
        "payload": {
            "instance_id": stem.name,
            "problem_statement": statement,
            "archive": str(archive.resolve()),
            "FAIL_TO_PASS": failing,
            "PASS_TO_PASS": passing,
        },
        "demonstration": demonstration(package, mutation),
    }


def demonstration(package: Package, mutation: Mutation) -> list[dict[str, Any] | str]:
    """Return the turns of an agent that knows the cause: tool calls, then its last words."""
    right = package.sources[mutation.path].splitlines()[mutation.line - 1]
    path = f"{UNPACKED}/{mutation.path}"
    look = {"command": "view", "path": path, "line": mutation.line, "last_line": mutation.line}
    edit = {"command": "insert", "path": path, "line": mutation.line, "new": right}
    drop = {"command": f"sed -i {mutation.line}d {path} && git diff --stat"}
    return [
        {"name": "editor", "arguments": look},
        {"name": "editor", "arguments": edit},
        {"name": "bash", "arguments": drop},
        "The code is as it should be again.",
    ]


def _rewrite(package: Package, mutation: Mutation, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(package.archive) as old, tarfile.open(archive, "w:gz") as new:
        for member in old:
            file = old.extractfile(member) if member.isfile() else None
            if member.name.partition("/")[2] == mutation.path:
                data = mutation.changed(package.sources[mutation.path]).encode()
                member.size = len(data)
                file = io.BytesIO(data)
            new.addfile(member, file)
