"""Recipes of images: definitions with arguments, and Dockerfiles.

Job: give Apptainer a definition in which nothing is open any more, and name what it is made from.
Does not know: the cache, processes, what Apptainer does with it.
Invariants: a definition has a value for every argument, and no value is left over.

Definitions are not read by spython: its parser takes those alone that start from a Docker registry,
and writes the names of images in lower case.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from .dockerfiles import ARCHIVES, converted
from .images import filled

_SECTION = r"[^\n]*\n((?:[^%\n][^\n]*\n|\n)*)"
_FILES = re.compile(r"^%files(?![ \t]+from\b)" + _SECTION, re.MULTILINE)
_DEFAULTS = re.compile(r"^%arguments\b" + _SECTION, re.MULTILINE)
_LOCAL = re.compile(
    rf"^Bootstrap:\s*(localimage|{'|'.join(ARCHIVES)})\s*\nFrom:\s*(\S+)",
    re.MULTILINE | re.IGNORECASE,
)
_ARGUMENT = re.compile(r"{{\s*([A-Za-z_][A-Za-z0-9_]*)\s*}}")


def is_dockerfile(path: Path) -> bool:
    """Whether a recipe is a Dockerfile by its name: `Dockerfile.x` is one, and `x.dockerfile`."""
    name = path.name.lower()
    return name.split(".")[0] == "dockerfile" or name.endswith(".dockerfile")


def definition(path: Path, arguments: Mapping[str, str]) -> str:
    """Return a recipe as a definition with its arguments filled in.

    Raises: ImageError; OSError if it cannot be read.
    """
    text = path.read_text(encoding="utf-8")
    return converted(text, arguments) if is_dockerfile(path) else resolve(text, arguments)


def resolve(text: str, arguments: Mapping[str, str]) -> str:
    """Return a definition with its arguments filled in.

    Raises: ImageError if one has no value, or if a value is given that nothing asks for.
    """
    asked = set(_ARGUMENT.findall(text))
    values = filled(dict(_default_arguments(text)), asked, arguments)
    return _ARGUMENT.sub(lambda match: values[match[1]], text)


def _default_arguments(text: str) -> Iterator[tuple[str, str]]:
    for section in _DEFAULTS.findall(text):
        for line in section.splitlines():
            name, equals, value = line.strip().partition("=")
            if equals:
                yield name.strip(), value.strip()


def sources(text: str, place: Path) -> list[Path]:
    """Return the files and directories of the host that a resolved definition is made from."""
    found = []
    for bootstrap, name in _LOCAL.findall(text):
        archive = bootstrap.lower() in ARCHIVES  # whose names may go on with a colon and a tag
        found.append(name.partition(":")[0] if archive else name)
    for section in _FILES.findall(text):
        found += [line.split()[0] for line in section.splitlines() if line.strip()]
    return [place / each for each in found if "://" not in each]


def has_script(text: str) -> bool:
    """Whether a build of a definition runs programs of the image."""
    return re.search(r"^%(post|test)\b", text, re.MULTILINE) is not None
