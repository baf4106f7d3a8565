"""Sandboxes by Apptainer: an image as root, rootless, everything contained.

Job: start a container of a SIF file or a directory image and bound what can be written in it.
Does not know: who owns a sandbox, pools, the topology.
Invariants: a container never runs as the host's root: mapped to itself it would own /proc/sys and
the control groups; root starts it as a user without rights, who is in a passwd file of its own.
/work, /tmp, /var/tmp and /dev/shm are tmpfs of `disk_bytes`; the rest is an overlay in memory, as
large as Apptainer's configuration says (`sessiondir max size`, 64 MB).

The container is a child that holds on to a pipe, and no detached `instance`: an instance survives
whoever started it and is registered in a home directory by name; a child ends with its starter.
Programs enter by the namespaces, which takes milliseconds, against 50 for `apptainer exec`.
"""

import os
import shutil
from pathlib import Path

from .contract import Spec
from .ground import PATH
from .images import path_of
from .inside import SHARED
from .isolating import Isolating
from .lifelines import FIRST, program
from .places import make_shared
from .records import Record

BOUNDED = ("/work", "/tmp", "/var/tmp", "/dev/shm")  # noqa: S108
OPTIONS = (
    *("--userns", "--containall", "--cleanenv", "--no-home", "--writable-tmpfs", "--no-privs"),
    *(
        "--no-init",
        "--uts",
        "--hostname",
        "sandbox",
        "--no-mount",
        "sys,home,cwd,hostfs,bind-paths",
    ),
)


class Apptainer(Isolating):
    """Starts sandboxes by Apptainer; an image is a SIF file or a directory."""

    name = "apptainer"

    async def _up(self, record: Record, spec: Spec) -> Record:
        image = path_of(self._images, spec.image, needed=True)
        directory = Path(record.directory)
        shared = make_shared(directory, record.uid)
        home, over = _user(directory, record.uid)
        network = () if spec.limits.network else ("--net", "--network", "none")
        command = [program("apptainer"), "--quiet", "exec", *OPTIONS, *network]
        command += ["--scratch", "/work", "--bind", f"{shared}:{SHARED}", "@0", *FIRST]
        own = {"PATH": PATH, "HOME": str(home), "APPTAINER_CONFIGDIR": str(home)}
        record = await self._spawn(record, command, own, [image], over)
        size_bytes = spec.limits.disk_bytes
        await self._arrange(record, "mount", size_bytes=size_bytes, paths=BOUNDED)
        return record


def _user(directory: Path, uid: int) -> tuple[Path, dict[str, str]]:
    """Make a home for Apptainer; as root also the files in which it finds its user."""
    home = directory / "home"
    home.mkdir(mode=0o700)
    os.chown(home, uid, uid)
    if uid == os.getuid():
        return home, {}
    passwd, group = directory / "passwd", directory / "group"
    passwd.write_text(f"root:x:0:0::/:/bin/sh\nuser:x:{uid}:{uid}::{home}:/bin/sh\n")
    group.write_text(f"root:x:0:\nuser:x:{uid}:\n")
    return home, {"/etc/passwd": str(passwd), "/etc/group": str(group)}


def is_available() -> bool:
    """Whether Apptainer is installed."""
    return shutil.which("apptainer") is not None
