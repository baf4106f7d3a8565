"""`rollmq tasks math|code|stem|swe|examples`: task files from the field's files, or our own.

    rollmq tasks math --from problems.jsonl --set talk.tools='["bash"]' --out tasks.jsonl
    rollmq tasks code --examples --out tasks.jsonl
    rollmq tasks swe --sdist package-1.0.tar.gz --count 10 --out tasks.jsonl
    rollmq tasks examples --for topology.yaml --out tasks.jsonl

Job: read arguments, call what makes tasks.
Does not know: how rows become payloads (`tasks.loading`) or mutations instances (`tasks.swe_made`).
Invariants: what goes into a task file is what the task kind reads; demonstrations go elsewhere.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from .sandboxes.contract import Limits, Owner, Sandbox, Spec

Task = dict[str, Any]
ALL = 10**9
KINDS = {
    "math": "problems with one right answer",
    "code": "programs and functions with hidden tests",
    "stem": "multiple choice and short answers",
    "swe": "repositories with an issue and tests",
}


def add_sources(sources: Any) -> None:
    """Add a source of tasks for each kind to the parser of `rollmq tasks`."""
    for kind, text in KINDS.items():
        parser = sources.add_parser(
            kind,
            help=text,
            epilog=f"example: rollmq tasks {kind} --examples --out tasks.jsonl",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        given = parser.add_mutually_exclusive_group(required=True)
        given.add_argument("--from", dest="file", type=Path, help="a .jsonl or .parquet file")
        given.add_argument("--examples", action="store_true", help="those that come with rollmq")
        if kind == "swe":
            given.add_argument("--sdist", type=Path, help="a package's source distribution")
            parser.add_argument("--seed", type=int, default=0, help="of the mutations")
        parser.add_argument("--count", type=int, default=ALL, help="tasks at most")
        parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON")
        parser.add_argument(
            "--demonstrations", type=Path, help="write turns for the simulator here"
        )
        parser.add_argument("--out", type=Path, required=True, help="the file to write")
        parser.set_defaults(make=_make, kind=kind)
    _add_examples(sources)


def _add_examples(sources: Any) -> None:
    every = sources.add_parser(
        "examples",
        help="the examples of math, code, stem and swe that can run here",
        epilog="example: rollmq tasks examples --for topology.yaml --out tasks.jsonl",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    every.add_argument("--for", dest="topology", type=Path, required=True, help="who runs them")
    every.add_argument("--set", action="append", default=[], metavar="NAME=JSON")
    every.add_argument("--out", type=Path, required=True, help="the file to write")
    every.set_defaults(make=_examples)


def _make(chosen: argparse.Namespace) -> Iterator[Task]:
    settings = _settings(chosen.set)
    turns = []
    for task in _found(chosen, settings):
        said = task.pop("demonstration", None)
        if said:
            turns.append({"key": _key(task["payload"]), "turns": said})
        yield task
    if chosen.demonstrations is not None:
        chosen.demonstrations.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in turns))


def _examples(chosen: argparse.Namespace) -> Iterator[Task]:
    """Yield the examples of every kind; say which are left out for want of a sandbox."""
    from engine import load  # noqa: PLC0415 - one source of tasks needs it

    from .sandboxes.choice import choose  # noqa: PLC0415 - the same
    from .tasks.loading import EXAMPLES, load_tasks, uses_sandbox  # noqa: PLC0415 - the same

    spec, settings = load(chosen.topology).sandboxes, _settings(chosen.set)
    provider = "none" if spec is None else choose(spec)
    left_out = 0
    for kind in KINDS:
        for task in load_tasks(kind, EXAMPLES / f"{kind}.jsonl", ALL, settings):
            task.pop("demonstration", None)
            if provider == "none" and uses_sandbox(task):
                left_out += 1
            else:
                yield task
    why = f"left out: {left_out} tasks that need one" if left_out else "nothing is left out"
    print(f"sandboxes: {provider}; {why}", file=sys.stderr)  # noqa: T201 - a command's answer


def _found(chosen: argparse.Namespace, settings: Task) -> Iterator[Task]:
    from .tasks.loading import EXAMPLES, load_tasks, merged  # noqa: PLC0415 - beside the kinds

    if getattr(chosen, "sdist", None) is None:
        file = chosen.file or EXAMPLES / f"{chosen.kind}.jsonl"
        yield from load_tasks(chosen.kind, file, chosen.count, settings)
        return
    for task in asyncio.run(_mutated(chosen)):
        yield {**task, "payload": merged(task["payload"], settings)}


async def _mutated(chosen: argparse.Namespace) -> list[Task]:
    from .tasks.swe_made import make, read_package  # noqa: PLC0415 - beside the kinds

    if chosen.count == ALL:
        raise ValueError("--sdist needs --count")
    package = read_package(chosen.sdist)
    folder = chosen.out.parent
    made = make(package, chosen.count, chosen.seed, _own_sandbox, folder)
    return [task async for task in made]


@asynccontextmanager
async def _own_sandbox() -> AsyncIterator[Sandbox]:
    """Start a sandbox by bubblewrap: this command runs without a topology and its keeper."""
    from .sandboxes.bubblewrap import Bubblewrap  # noqa: PLC0415 - one command needs it

    with tempfile.TemporaryDirectory(prefix="rollmq-", dir="/tmp") as name:
        place = Path(name)
        os.chmod(place, 0o755)  # noqa: PTH101, S103 - the sandbox's user passes through
        maker = Bubblewrap(place / "b", place / "records")
        sandbox = await maker.start(Spec(limits=Limits()), Owner("tasks", 1, "tasks"))
        try:
            yield sandbox
        finally:
            await sandbox.stop()
            await maker.close()


def _settings(given: list[str]) -> Task:
    """Return `talk.turns=3` and the like as an object.

    Raises: ValueError if one is not a name and JSON.
    """
    settings: Task = {}
    for each in given:
        name, mark, text = each.partition("=")
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            mark = ""
        if not (name and mark):
            raise ValueError(f"--set {each}: expected NAME=JSON, such as talk.turns=8")
        place = settings
        *above, last = name.split(".")
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return settings


def _key(payload: Task) -> str:
    names = ("problem", "prompt", "question", "problem_statement")
    return str(next(payload[name] for name in names if name in payload))
