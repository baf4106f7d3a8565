"""Sandboxes by bubblewrap: a root of read-only mounts, a process-id namespace, a user of its own.

Job: tell bwrap what exists inside, and nothing else does.
Does not know: who owns a sandbox, pools, the topology.
Invariants: everything that can be written is a tmpfs of `disk_bytes`, or the shared directory.
Nothing of the host's /etc, /home, /root, /var or /run is inside but what is listed here.

Without an image the root is the host's /usr and the Python that runs rollmq, with its packages, at
its own path: so that a kernel and pytest are there.
"""

import shutil
import sys
from pathlib import Path

from .contract import Spec
from .ground import FILES, HOST_BIN, PATH, USER
from .images import path_of
from .inside import SHARED
from .isolating import Isolating
from .lifelines import FIRST, program
from .places import make_shared
from .records import Record

ETC = (
    *("alternatives", "ca-certificates", "ld.so.cache", "ld.so.conf", "ld.so.conf.d"),
    *("localtime", "mime.types", "ssl", "terminfo"),
)
KEPT_OUT = {"dev", "proc", "sys", "tmp", "work", "shared", "run"}


class Bubblewrap(Isolating):
    """Starts sandboxes by bwrap; an image is a directory, none is the host's /usr."""

    name = "bubblewrap"

    def _before_path(self, spec: Spec) -> str:
        return "" if spec.image or "" in self._images else HOST_BIN

    async def _up(self, record: Record, spec: Spec) -> Record:
        make_shared(Path(record.directory), record.uid)
        image = path_of(self._images, spec.image, needed=False)
        arguments = _arguments(image, spec, Path(record.directory))
        command, sources = _staged([program("bwrap"), *arguments, "--", *FIRST])
        return await self._spawn(record, command, {"PATH": PATH}, sources, {})


def _staged(command: list[str]) -> tuple[list[str], list[str]]:
    """Return a command in which `@N` stands for what only root may be able to reach."""
    command, sources = list(command), []
    for place, word in enumerate(command[:-1]):
        if word == "--ro-bind" and not command[place + 1].startswith("/usr"):
            sources.append(command[place + 1])
            command[place + 1] = f"@{len(sources) - 1}"
    return command, sources


def _arguments(image: str, spec: Spec, directory: Path) -> list[str]:
    size = ["--size", str(spec.limits.disk_bytes)]
    network = ["--share-net"] if spec.limits.network else []
    return [
        *("--unshare-user", "--unshare-all", *network, "--die-with-parent", "--new-session"),
        *("--as-pid-1", "--uid", str(USER), "--gid", str(USER), "--hostname", "sandbox"),
        *("--clearenv", "--setenv", "PATH", PATH, "--cap-drop", "ALL"),
        *(_image_root(Path(image)) if image else _host_root(directory.parent)),
        *("--proc", "/proc", "--dev", "/dev", *size, "--tmpfs", "/dev/shm"),  # noqa: S108
        *("--remount-ro", "/dev", *size, "--tmpfs", "/tmp", *size, "--tmpfs", "/work"),  # noqa: S108
        *(() if image else _interpreter()),
        *("--bind", str(directory / "shared"), SHARED, "--chdir", "/", "--remount-ro", "/"),
    ]


def _host_root(base: Path) -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    words += ["--dir", "/etc"]
    for name in ETC:
        if Path("/etc", name).exists():
            words += ["--ro-bind", f"/etc/{name}", f"/etc/{name}"]
    for name in FILES:
        words += ["--ro-bind", str(base / "etc" / name), f"/etc/{name}"]
    return words


def _interpreter() -> list[str]:
    """Return mounts of the Python that runs rollmq; after /tmp, where it may lie."""
    words = []
    for prefix in dict.fromkeys((sys.base_prefix, sys.prefix)):
        parents = [str(each) for each in reversed(Path(prefix).parents) if each != Path("/")]
        if not prefix.startswith("/usr"):
            for parent in parents:
                words += ["--perms", "0755", "--dir", parent]
            words += ["--ro-bind", prefix, prefix]
    return words


def _image_root(image: Path) -> list[str]:
    words = []
    for path in sorted(image.iterdir()):
        if path.name in KEPT_OUT:
            continue
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), f"/{path.name}"]
        else:
            words += ["--ro-bind", str(path), f"/{path.name}"]
    return words


def is_available() -> bool:
    """Whether bwrap is installed."""
    return shutil.which("bwrap") is not None
