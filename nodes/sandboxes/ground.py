"""What sandboxes of every provider begin with: a record, an environment, files of /etc.

Job: make the directories of a run's sandboxes and the record of one that is about to be started.
Does not know: providers, and what runs.
Invariants: nothing of the host's environment is in a sandbox's.
"""

import sys
from pathlib import Path

from .contract import Owner, Spec
from .places import make_base, new_name, new_uid
from .records import Record

USER = 1000  # inside
FILES = {
    "passwd": f"root:x:0:0:root:/root:/bin/sh\nuser:x:{USER}:{USER}:user:/work:/bin/bash\n",
    "group": f"root:x:0:\nuser:x:{USER}:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
HOST_BIN = str(Path(sys.prefix, "bin"))
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def new_record(
    provider: str, base: Path, spec: Spec, owner: Owner | None, before_path: str = ""
) -> Record:
    """Return the record of a sandbox that is about to be started."""
    name = new_name()
    return Record(
        *(name, provider, spec.image, 0, 0, new_uid(), str(base / name), spec.workdir),
        *(spec.limits, environment(spec, before_path)),
        owner=owner,
    )


def prepare(base: Path, records: Path) -> None:
    """Make the directories of a run's sandboxes, and the files of /etc that all of them share.

    Raises: BoundaryError("sandbox"); OSError.
    """
    make_base(base)
    records.mkdir(mode=0o700, parents=True, exist_ok=True)
    etc = base / "etc"
    if not etc.exists():
        etc.mkdir(mode=0o755)
        for name, text in FILES.items():
            (etc / name).write_text(text, encoding="ascii")


def environment(spec: Spec, before_path: str = "") -> dict[str, str]:
    """Return the environment of every program inside: nothing of the host's."""
    path = f"{before_path}:{PATH}" if before_path else PATH
    own = {"PATH": path, "HOME": "/work", "USER": "user", "LANG": "C.UTF-8", "TERM": "dumb"}
    return own | dict(spec.environment)
