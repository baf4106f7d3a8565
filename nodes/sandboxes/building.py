"""Images built once: a cache by the content of what they are made of.

Job: hash a definition with its arguments and files, have it built once, list, prune.
Does not know: the command line, how recipes are read, how Apptainer is called.
Invariants: an image is in the cache whole or not at all, under the hash of everything that it was
made from. Of several builds of one image at once, one builds and the others wait for it. What is in
the cache is found without Apptainer and without a network.
"""

import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from engine.files import write_whole
from engine.typed import Mismatch, compile_decoder

from . import recipes
from .images import ImageError
from .making import BUILD_S, labels_of, make

POLL_S = 0.1
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,80}")


@dataclass(frozen=True, slots=True)
class Image:
    """One image in the cache.

    built_at: seconds since 1970. seconds: that its build took. labels: those that the recipe gave.
    """

    name: str
    digest: str
    path: str
    definition: str
    size_bytes: int
    built_at: float
    seconds: float
    labels: dict[str, str] = field(default_factory=dict)


_DECODE = compile_decoder(Image)


def cache_dir() -> Path:
    """Return where images are kept: $ROLLMQ_IMAGES, or the user's cache directory."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("ROLLMQ_IMAGES") or home / "rollmq" / "images")


def digest(text: str, files: list[Path]) -> str:
    """Return the hash of a resolved definition and of everything in its files.

    Raises: ImageError if a file is not there.
    """
    total = hashlib.sha256(text.encode())
    for path in files:
        if not path.exists():
            raise ImageError(f"{path} is not there")
        for each in [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]:
            _add(total, each, each.relative_to(path.parent))
    return total.hexdigest()[:16]


def _add(total: "hashlib._Hash", path: Path, name: Path) -> None:
    about = path.lstat()
    total.update(b"\0" + os.fsencode(name) + f"\0{about.st_mode:o}\0".encode())
    if stat.S_ISLNK(about.st_mode):
        total.update(os.fsencode(path.readlink()))
    elif stat.S_ISREG(about.st_mode):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())


def build(
    cache: Path, name: str, definition: Path, arguments: Mapping[str, str], *, fakeroot: bool
) -> tuple[Image, bool]:
    """Return an image and whether it was built now.

    Paths in the definition and its arguments are relative to the working directory.

    Raises: ImageError; OSError if the cache cannot be written.
    """
    if not NAME.fullmatch(name):
        raise ImageError(f"{name!r} is no name for an image: a-z, 0-9, `.`, `_` and `-`")
    text = recipes.definition(definition, arguments)
    key = digest(text, recipes.sources(text, Path.cwd()))
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{name}-{key}.lock"):
        found = _read(cache / f"{name}-{key}.json")
        if found is not None:
            return found, False
        return _build(cache, name, key, definition, text, fakeroot=fakeroot), True


def _build(
    cache: Path, name: str, key: str, definition: Path, text: str, *, fakeroot: bool
) -> Image:
    began, part = time.monotonic(), cache / f"{name}-{key}.part.sif"
    resolved = cache / f"{name}-{key}.part.def"
    resolved.write_text(text, encoding="utf-8")
    try:
        make(resolved, part, scripted=recipes.has_script(text), fakeroot=fakeroot)
        labels = labels_of(part)
        part.chmod(0o644)
        path = cache / f"{name}-{key}.sif"
        part.replace(path)
    finally:
        resolved.unlink()
        part.unlink(missing_ok=True)
    image = Image(
        *(name, key, str(path), definition.name, path.stat().st_size),
        *(time.time(), time.monotonic() - began, labels),
    )
    write_whole(cache / f"{name}-{key}.json", orjson.dumps(asdict(image)))
    return image


def listed(cache: Path) -> list[Image]:
    """Return what is in a cache, by name, the newest first."""
    found = [image for path in cache.glob("*.json") if (image := _read(path)) is not None]
    return sorted(found, key=lambda image: (image.name, -image.built_at))


def prune(cache: Path, keep: int) -> list[Image]:
    """Remove all but the newest of each name; return what was removed. Raises: OSError."""
    seen: dict[str, int] = {}
    removed = []
    for image in listed(cache):
        seen[image.name] = seen.get(image.name, 0) + 1
        if seen[image.name] > keep:
            for ending in ("json", "sif", "lock"):
                (cache / f"{image.name}-{image.digest}.{ending}").unlink(missing_ok=True)
            removed.append(image)
    return removed


def _read(path: Path) -> Image | None:
    try:
        image: Image = _DECODE(orjson.loads(path.read_bytes()))
    except (OSError, ValueError, Mismatch):
        return None
    return image if Path(image.path).exists() else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of one image; whoever has it builds. Raises: ImageError after a deadline."""
    deadline = time.monotonic() + BUILD_S
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ImageError(f"another build holds {path} for {BUILD_S:g} s") from None
                time.sleep(POLL_S)
            else:
                break
        yield
