"""Become a user without rights and run a program; for sandboxes that root starts.

    python -I -S launch.py {"uid": N, "stage": DIR, "sources": [...], "over": {...}} ARGV

Job: show that user the sources of its mounts, wherever they lie: in a mount namespace of our own
each is bound read-only below STAGE by its number, and `@N` in ARGV becomes that path. `over` names
files that ARGV shall see others in place of.
Does not know: what ARGV is. It imports the standard library alone; see `enter`.
Invariants: ARGV begins with a path. The host's own mounts stay as they are. ARGV runs as
the user, in no group of root's.
"""

import ctypes
import json
import os
import signal
import sys

NEWNS = 0x00020000
READ_ONLY, REMOUNT, BIND, RECURSIVE, SLAVE = 1, 32, 4096, 16384, 1 << 19
libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Read the arguments; see the module's docstring. Raises: OSError if a mount is refused."""
    asked, argv = json.loads(sys.argv[1]), sys.argv[2:]
    argv = _stage(asked["stage"], asked["sources"], argv)
    for path, other in asked["over"].items():
        _mount(other, path, "", BIND, "")
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    os.setgroups([])
    os.setresgid(asked["uid"], asked["uid"], asked["uid"])
    os.setresuid(asked["uid"], asked["uid"], asked["uid"])
    os.execv(argv[0], argv)  # noqa: S606


def _stage(stage: str, sources: list[str], argv: list[str]) -> list[str]:
    if libc.unshare(NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("none", "/", "", RECURSIVE | SLAVE, "")
    _mount("rollmq", stage, "tmpfs", 0, "mode=0711,size=64k")
    places = {f"@{number}": f"{stage}/{number}" for number in range(len(sources))}
    for source, place in zip(sources, places.values(), strict=True):
        if os.path.isdir(source):  # noqa: PTH112 - pathlib costs milliseconds
            os.mkdir(place)  # noqa: PTH102
        else:
            os.close(os.open(place, os.O_CREAT))
        _mount(source, place, "", BIND | RECURSIVE, "")
        _mount("none", place, "", BIND | REMOUNT | READ_ONLY, "")
    return [places.get(word, word) for word in argv]


def _mount(source: str, place: str, kind: str, flags: int, options: str) -> None:
    words = (source.encode(), place.encode(), kind.encode(), flags, options.encode())
    if libc.mount(*words):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), source)


if __name__ == "__main__":
    main()
