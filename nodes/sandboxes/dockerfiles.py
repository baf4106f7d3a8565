"""Dockerfiles as definitions of Apptainer: spython's parser and writer, and what they need around.

Job: translate a Dockerfile, or say which line has no counterpart.
Does not know: the cache, processes, what Apptainer does with a definition.
Invariants: what spython or Apptainer would take to mean something else is refused by its line. What
matters to services alone (CMD, EXPOSE and the like) is left out.

What is done around spython: continued lines are joined before, every RUN is a shell of its own, ENV
and ARG are exported, so that programs of later lines have them, labels are written as Apptainer
reads them, and the names of stages and images are given to it: its search for AS finds one in the
middle of a name.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spython.logger import bot
from spython.main.parse.parsers import DockerParser
from spython.main.parse.writers import SingularityWriter

from .images import ImageError, filled

ARCHIVES = ("oci-archive", "docker-archive")
LEFT_OUT = {
    *("CMD", "ENTRYPOINT", "EXPOSE", "VOLUME", "STOPSIGNAL", "HEALTHCHECK", "MAINTAINER"),
}
KNOWN = {"FROM", "ARG", "ENV", "LABEL", "RUN", "COPY", "ADD", "WORKDIR", "USER", *LEFT_OUT}
_HERE = re.compile(
    rf"^Bootstrap: docker\nFrom: (localimage|{'|'.join(ARCHIVES)}):(.+)$", re.MULTILINE
)
_FROM = re.compile(r"(\S+)(?:\s+AS\s+([A-Za-z0-9._-]+))?", re.IGNORECASE)
_ASSIGNED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_USED = re.compile(r"\$(?:{(\w+)}|(\w+))")
_PACKED = re.compile(r"\.(tar|tgz|gz|gzip|bz2|xz|zst)$")
_PLAIN = re.compile(r"[^\s\"'$`\\]*")
_ONLY_ERRORS = -3  # of spython's log levels: what it warns of is refused here


@dataclass(frozen=True, slots=True)
class _Line:
    """One instruction."""

    word: str
    rest: str

    def refused(self, why: str) -> ImageError:
        return ImageError(f"{self.word} {self.rest[:60]}: {why}")


def converted(text: str, arguments: Mapping[str, str]) -> str:
    """Return a Dockerfile as a definition; paths are relative to the working directory.

    `FROM localimage:base.sif`, `FROM oci-archive:file` and `FROM docker-archive:file` start from
    what lies here. Raises: ImageError, naming the line, for what has no counterpart.
    """
    lines = [line for line in _lines(text) if line.word not in LEFT_OUT]
    values = filled(*_asked(lines), arguments)
    stages: dict[str, str] = {}
    ready = [_ready(line, lines[place + 1 :], values, stages) for place, line in enumerate(lines)]
    recipe = _parsed("\n".join(each for each in ready if each) + "\n")
    if not stages:
        raise ImageError("a Dockerfile begins with FROM")
    for stage, image in stages.items():
        _amend(recipe[stage], image)
    written: str = SingularityWriter(recipe).convert()
    return _HERE.sub(r"Bootstrap: \1\nFrom: \2", written) + "\n"


def _lines(text: str) -> Iterator[_Line]:
    """Return the instructions, each in one line. Raises: ImageError."""
    if re.search(r"^#\s*escape\s*=", text, re.MULTILINE | re.IGNORECASE) or "{{" in text:
        raise ImageError("`# escape=` and `{{` have no counterpart in a definition")
    kept = [line.strip() for line in text.splitlines()]
    whole = "\n".join(line for line in kept if line and not line.startswith("#"))
    for line in whole.replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        found = _Line(word.upper(), rest.strip())
        if found.word not in KNOWN:
            raise found.refused("no such instruction, or none that a definition has")
        if found.word == "RUN" and (found.rest.startswith(("[", "--")) or "<<" in found.rest):
            raise found.refused("a plain shell command is all that a definition has")
        yield found


def _asked(lines: list[_Line]) -> tuple[dict[str, str], set[str]]:
    """Return the defaults of arguments, and their names."""
    defaults, names = {}, set()
    for line in lines:
        if line.word == "ARG":
            name, equals, value = line.rest.partition("=")
            names.add(name)
            if equals:
                defaults[name] = value
    return defaults, names


def _ready(
    line: _Line, later: list[_Line], values: Mapping[str, str], stages: dict[str, str]
) -> str:
    """Return a line as spython's parser takes it; note a FROM in `stages`. Raises: ImageError."""
    match line.word:
        case "FROM":
            return f"FROM image AS {_stage(line, values, stages)}"
        case "ARG":
            name = line.rest.partition("=")[0]
            if not _PLAIN.fullmatch(f"{name}{values[name]}"):
                raise line.refused("one name in a line, and no spaces or quotes in its value")
            return f"ARG {name}={values[name]}"
        case "RUN":
            return f"RUN sh -c {shlex.quote(line.rest)}"
        case "COPY" | "ADD":
            _check_copy(line, stages)
        case "WORKDIR" if not line.rest.startswith("/"):
            raise line.refused("write the whole path")
        case "USER":
            if line.rest not in {"root", "0"} and "RUN" in {each.word for each in later}:
                raise line.refused("images are built as root")
            return ""
    return f"{line.word} {line.rest}"


def _stage(line: _Line, values: Mapping[str, str], stages: dict[str, str]) -> str:
    found = _FROM.fullmatch(_USED.sub(lambda use: values.get(use[1] or use[2], use[0]), line.rest))
    if found is None or found[1].startswith("-") or found[1] in {*stages, "scratch"}:
        raise line.refused("expected an image, and no option or earlier stage")
    name = found[2] or f"stage-{len(stages) + 1}"
    stages[name] = found[1]
    return name


def _check_copy(line: _Line, stages: Mapping[str, str]) -> None:
    words = line.rest.split()
    if line.word == "COPY" and words[0].startswith("--from="):
        if words.pop(0).removeprefix("--from=") not in stages:
            raise line.refused("no earlier stage has that name")
    elif line.word == "ADD" and any("://" in word or _PACKED.search(word) for word in words):
        raise line.refused("use RUN to fetch or to unpack, and COPY for files")
    if words[0].startswith(("-", "[")) or any(set(word) & set("*?$\"'\\") for word in words):
        raise line.refused("options, lists, patterns and quotes have no counterpart")
    if len(words) < 2 or not words[-1].startswith("/"):
        raise line.refused("write the whole path of where it goes")


def _parsed(text: str) -> dict[str, Any]:
    """Return spython's recipe of each stage. Raises: ImageError."""
    level, bot.level = bot.level, _ONLY_ERRORS
    try:
        with TemporaryDirectory() as place:
            path = Path(place, "Dockerfile")
            path.write_text(text, encoding="utf-8")
            stages: dict[str, Any] = DockerParser(str(path)).recipe
    except (IndexError, KeyError, ValueError, SystemExit) as wrong:
        raise ImageError(f"spython cannot read this Dockerfile: {wrong!r}") from wrong
    finally:
        bot.level = level
    return stages


def _amend(recipe: Any, image: str) -> None:
    """Mend what spython's parser leaves otherwise than a build needs it."""
    recipe.fromHeader = image
    recipe.workdir = None
    recipe.install = [
        f"export {each}" if _ASSIGNED.match(each) else each.rstrip("\n") for each in recipe.install
    ]
    pairs = []
    for words in recipe.labels:
        for label in shlex.split(" ".join(words)):
            name, _, value = label.partition("=")
            pairs.append([name, value])
    recipe.labels = pairs
