"""Images by name.

Job: find the path of an image that a task names.
Does not know: how images are built, or what uses them.
Invariants: an image that is not there is an error that no retry mends, and says what there is.
"""

from collections.abc import Mapping
from pathlib import Path

from engine.errors import BoundaryError


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
