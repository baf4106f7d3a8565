"""`rollmq tasks math|code|stem|swe`: task files from the field's files, the examples, or a package.

    rollmq tasks math --from problems.jsonl --set talk.tools='["bash"]' --out tasks.jsonl
    rollmq tasks code --examples --out tasks.jsonl
    rollmq tasks swe --sdist package-1.0.tar.gz --count 10 --out tasks.jsonl

Job: read arguments, call what makes tasks.
Does not know: how rows become payloads (`tasks.loading`) or mutations instances (`tasks.swe_made`).
Invariants: what goes into a task file is what the task kind reads; demonstrations go elsewhere.
"""

import argparse
import asyncio
import os
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
        if kind == "swe":
            given.add_argument("--sdist", type=Path, help="a package's source distribution")
            parser.add_argument("--seed", type=int, default=0, help="of the mutations")
        else:
            given.add_argument(
                "--examples", action="store_true", help="those that come with rollmq"
            )
        parser.add_argument("--count", type=int, default=ALL, help="tasks at most")
        parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON")
        parser.add_argument(
            "--demonstrations", type=Path, help="write turns for the simulator here"
        )
        parser.add_argument("--out", type=Path, required=True, help="the file to write")
        parser.set_defaults(make=_make, kind=kind)


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


def _found(chosen: argparse.Namespace, settings: Task) -> Iterator[Task]:
    from .tasks.loading import EXAMPLES, load_tasks, merged  # noqa: PLC0415 - beside the kinds

    if chosen.file is not None or chosen.kind != "swe":
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
