"""Images by name, and the values that their recipes ask for.

Job: find the path of an image that a task names; match the arguments of a build with what is asked.
Does not know: how images are built, or what uses them.
Invariants: an image that is not there is an error that no retry mends, and says what there is.
"""

from collections.abc import Mapping
from pathlib import Path

from engine.errors import BoundaryError, RollmqError


class ImageError(RollmqError):
    """An image cannot be built; the message has what is wrong with its recipe, or was said last."""


def filled(
    defaults: Mapping[str, str], asked: set[str], given: Mapping[str, str]
) -> dict[str, str]:
    """Return the value of each argument that a recipe asks for.

    Raises: ImageError if one has none, or if a value is given that nothing asks for.
    """
    values = {**defaults, **given}
    missing, unknown = asked - values.keys(), given.keys() - asked
    if missing:
        raise ImageError(f"give a value: {', '.join(f'--arg {name}=' for name in sorted(missing))}")
    if unknown:
        known = ", ".join(sorted(asked)) or "none"
        raise ImageError(f"no argument {', '.join(sorted(unknown))}; there are: {known}")
    return values


def path_of(images: Mapping[str, str], name: str, *, needed: bool) -> str:
    """Return an image's path; without a name and unless one is needed, the empty string.

    Raises: BoundaryError("sandbox"), without retry.
    """
    path = images.get(name)
    if path is None and not name and not needed:
        return ""
    known = ", ".join(sorted(key or "base" for key in images)) or "none"
    if path is None:
        why = f"the topology names no image {name or 'base'!r}; there are: {known}"
        raise BoundaryError("sandbox", why, retry=False)
    if not Path(path).exists():
        raise BoundaryError("sandbox", f"image {name or 'base'!r}: no {path}", retry=False)
    return path
