"""Run a program as root of a user namespace in which every user is itself.

    python -I -S mapped.py ARGV

Job: give a program all capabilities over a namespace of its own, and none over anything else.
Does not know: what ARGV is. It imports the standard library alone; see `enter`.
Invariants: files keep their owners, inside and out: user N there is user N here.
"""

import ctypes
import os
import sys
from pathlib import Path

NEWUSER = 0x10000000
USERS = "0 0 65536\n"
libc = ctypes.CDLL(None, use_errno=True)


def command() -> list[str]:
    """Return what to put before an argv."""
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve())]


def main() -> None:
    """Read the arguments; see the module's docstring. Raises: OSError if it is not allowed."""
    asked, ask = os.pipe()
    parent = os.getpid()
    child = os.fork()  # only from outside can more than one user be mapped
    if child == 0:
        try:
            os.read(asked, 1)
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{parent}/{name}").write_text(USERS, encoding="ascii")
            os._exit(0)
        finally:
            os._exit(1)
    if libc.unshare(NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")
    os.write(ask, b"x")
    if os.waitpid(child, 0)[1]:
        raise PermissionError("the users cannot be mapped")
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606


if __name__ == "__main__":
    main()
