"""Sandboxes by bubblewrap: a root of read-only mounts, a process-id namespace, a user of its own.

Job: tell bwrap what exists inside, and nothing else does.
Does not know: who owns a sandbox, pools, the topology.
Invariants: everything that can be written is a tmpfs of `disk_bytes`, or the shared directory.
Nothing of the host's /etc, /home, /root, /var or /run is inside but what is listed here.

Without an image the root is the host's /usr and the Python that runs rollmq, with its packages, at
its own path: so that a kernel and pytest are there.
"""

import asyncio
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from .contract import Owner, Spec
from .enter import start_time
from .entrance import Entrance
from .images import path_of
from .inside import SHARED, Inside
from .lifelines import FIRST, Lifelines, program
from .places import make_base, make_shared, new_name, new_uid
from .records import Record, forget_record, remove_tree, write_record

USER = 1000  # inside
ETC = (
    *("alternatives", "ca-certificates", "ld.so.cache", "ld.so.conf", "ld.so.conf.d"),
    *("localtime", "mime.types", "ssl", "terminfo"),
)
FILES = {
    "passwd": f"root:x:0:0:root:/root:/bin/sh\nuser:x:{USER}:{USER}:user:/work:/bin/bash\n",
    "group": f"root:x:0:\nuser:x:{USER}:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
KEPT_OUT = {"dev", "proc", "sys", "tmp", "work", "shared", "run"}
HOST_BIN = str(Path(sys.prefix, "bin"))
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Bubblewrap:
    """Starts sandboxes; `base` holds their directories, `records` their records."""

    name = "bubblewrap"

    def __init__(self, base: Path, records: Path, images: dict[str, str] | None = None) -> None:
        self._base = base
        self._records = records
        self._images = images or {}
        self._entrance = Entrance()
        self._lifelines = Lifelines(base / "stage")

    async def start(self, spec: Spec, owner: Owner | None) -> Inside:
        """Start a sandbox. Raises: BoundaryError("sandbox")."""
        prepare(self._base, self._records)
        own = spec.image or "" in self._images
        record = new_record(self.name, self._base, spec, owner, HOST_BIN if not own else "")
        write_record(self._records, record)
        try:
            record = await self._up(record, spec)
            write_record(self._records, record)
        except BaseException:
            await asyncio.shield(self.remove(record))
            raise
        return Inside(record, self._entrance, lambda: self.remove(record))

    async def _up(self, record: Record, spec: Spec) -> Record:
        make_shared(Path(record.directory), record.uid)
        image = path_of(self._images, spec.image, needed=False)
        arguments = _arguments(image, spec, Path(record.directory))
        command, sources = _staged([program("bwrap"), *arguments, "--", *FIRST])
        path = {"PATH": PATH}
        await self._lifelines.spawn(record, command, path, sources, {})
        pid = await self._lifelines.first(record.name)
        return replace(record, pid=pid, started=start_time(pid))

    async def remove(self, record: Record) -> None:
        """End a sandbox and remove what it had. Raises: BoundaryError("sandbox")."""
        await self._lifelines.end(record)
        await asyncio.to_thread(remove_tree, Path(record.directory))
        forget_record(self._records, record.name)

    async def close(self) -> None:
        """Close the way in; every sandbox that this object started ends with it."""
        self._entrance.close()
        self._lifelines.close()


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


def is_available() -> bool:
    """Whether bwrap is installed."""
    return shutil.which("bwrap") is not None
