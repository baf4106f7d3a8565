"""Where sandboxes of one run keep what they have on the host.

Job: the directories of a run's sandboxes, their names and users.
Does not know: what runs in them.
Invariants: only this user can enter what is private; a name is never used twice. Paths are short,
because Unix sockets lie below them, and follow from the run directory, so that whoever comes after
a crash finds what was left.
"""

import hashlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from engine.errors import BoundaryError

FIRST_UID = 0x70000000  # above what systems and container managers hand out
UIDS = 0x0FFF0000


def records_dir(run_dir: Path) -> Path:
    """Return where the records of a run's sandboxes lie."""
    return run_dir / "sandboxes"


def base_dir(run_dir: Path) -> Path:
    """Return the directory of a run's sandboxes: below the system's directory for such things."""
    key = hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"rollmq-{key}"


def make_base(base: Path) -> None:
    """Make a base directory that others may pass through if root owns it, and nobody else.

    Raises: BoundaryError("sandbox") if somebody else made it.
    """
    base.mkdir(mode=0o700, exist_ok=True)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        why = f"{base} belongs to user {found.st_uid}, not to {os.getuid()}"
        raise BoundaryError("sandbox", why, retry=False)
    base.chmod(0o711 if os.getuid() == 0 else 0o700)


def new_name() -> str:
    """Return a name that no sandbox had before."""
    return f"sb-{secrets.token_hex(6)}"


def new_uid() -> int:
    """Return the user of a new sandbox: our own, or as root one that has no rights at all."""
    return FIRST_UID + secrets.randbelow(UIDS) if os.getuid() == 0 else os.getuid()


def make_shared(directory: Path, uid: int) -> Path:
    """Make a sandbox's directory and the shared one in it, the latter the sandbox's own.

    Raises: OSError.
    """
    directory.mkdir(mode=0o711 if os.getuid() == 0 else 0o700)
    shared = directory / "shared"
    shared.mkdir(mode=0o700)
    os.chown(shared, uid, uid)
    return shared
