"""The command `rollmq images`.

    rollmq images build singularity/base.def --name base --arg rootfs=build/rootfs
    rollmq images build Dockerfile --name mine --arg version=3
    rollmq images list [--json]
    rollmq images prune [--keep 1]

Job: read arguments, call what does the work, return an exit status.
Does not know: how images are built and kept.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson

from .building import Image, build, cache_dir, listed, prune
from .images import ImageError


def images(arguments: Sequence[str]) -> int:
    """Build, list or prune images; return the exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
    except (ImageError, OSError) as wrong:
        print(f"rollmq: {wrong}", file=sys.stderr)  # noqa: T201 - a command's answer
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rollmq images", description="images for sandboxes")
    parser.add_argument("--cache", type=Path, default=cache_dir(), help="default: %(default)s")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    made = commands.add_parser("build", help="build an image, unless it is in the cache")
    made.add_argument("definition", type=Path, help="a definition of Apptainer, or a Dockerfile")
    made.add_argument("--name", required=True)
    made.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE")
    made.add_argument("--fakeroot", action="store_true", help="for definitions with %%post")
    made.set_defaults(run=_build)
    shown = commands.add_parser("list", help="what is in the cache")
    shown.add_argument("--json", action="store_true", help="as one JSON line")
    shown.set_defaults(run=_list)
    pruned = commands.add_parser("prune", help="remove all but the newest of each name")
    pruned.add_argument("--keep", type=int, default=1)
    pruned.set_defaults(run=_prune)
    return parser


def _build(chosen: argparse.Namespace) -> int:
    wrong = [each for each in chosen.arg if "=" not in each]
    if wrong:
        print(f"rollmq: not NAME=VALUE: {', '.join(wrong)}", file=sys.stderr)  # noqa: T201
        return 2
    arguments = dict(each.split("=", 1) for each in chosen.arg)
    image, is_new = build(
        chosen.cache, chosen.name, chosen.definition, arguments, fakeroot=chosen.fakeroot
    )
    how = f"built in {image.seconds:.1f} s" if is_new else "was in the cache"
    print(f"{image.name} {image.digest} {how}", file=sys.stderr)  # noqa: T201
    print(image.path)  # noqa: T201 - for scripts: the path alone on standard output
    return 0


def _list(chosen: argparse.Namespace) -> int:
    found = listed(chosen.cache)
    if chosen.json:
        print(orjson.dumps(found).decode())  # noqa: T201
        return 0
    for image in found:
        print(_line(image))  # noqa: T201
    return 0


def _prune(chosen: argparse.Namespace) -> int:
    for image in prune(chosen.cache, chosen.keep):
        print(f"removed {_line(image)}")  # noqa: T201
    return 0


def _line(image: Image) -> str:
    about = f"{image.name:24} {image.digest} {image.size_bytes / 1e6:8.1f} MB  {image.path}"
    return " ".join([about, *(f" {key}={value}" for key, value in image.labels.items())])
