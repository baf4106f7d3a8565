"""Files that are there whole or not at all.

Job: write a file's new content beside it, then put it in its place.
Does not know: what is in it.
Invariants: whoever opens the path reads the former content or the new one, never a part. One writer
at a time: the draft has one name.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Give a path beside `path`; what the block has written there takes its place at the end.

    If the block fails the draft is removed, and what was there stays.

    Raises: OSError.
    """
    draft = path.with_name(f"{path.name}.tmp")
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes, *, mode: int = 0o666, sync: bool = False) -> None:
    """Create or replace a file.

    mode: of the new file, less the process's umask. sync: return once a crash of the machine leaves
    the new content.

    Raises: OSError; what was there stays then.
    """
    with draft_of(path) as draft:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
    if sync:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a crash of the machine. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
