"""Sandboxes by bubblewrap: a root of read-only mounts, a process-id namespace, a user of its own.

Job: start bwrap so that only what it is told exists inside, and stop it.
Does not know: who owns a sandbox, pools, the topology.
Invariants: the first process inside waits for the end of a pipe that the starter holds: whatever
ends the starter ends the sandbox. Everything that can be written is a tmpfs of `disk_bytes`, or the
shared directory. Nothing of the host's /etc, /home, /root, /var or /run is inside.

Without an image the root is the host's /usr and the Python that runs rollmq, with its packages, at
its own path: so that a kernel and pytest are there. The first process ignores SIGCHLD, so that the
kernel buries orphans (where env is that of GNU; elsewhere they stay, and count).
"""

import asyncio
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from engine.errors import BoundaryError

from . import launch
from .contract import Owner, Spec
from .enter import start_time
from .entrance import Entrance
from .inside import SHARED, Inside
from .places import make_base, make_shared, new_name, new_uid
from .records import Record, forget_record, kill, remove_tree, write_record

START_S = 30.0
STOP_S = 20.0
IGNORE = "env --ignore-signal=CHLD"
FIRST = (
    *("/bin/sh", "-c"),
    f"{IGNORE} true 2> /dev/null && exec {IGNORE} cat > /dev/null; exec cat > /dev/null",
)
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
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(slots=True)
class _Running:
    process: asyncio.subprocess.Process
    lifeline: int


class Bubblewrap:
    """Starts sandboxes; `base` holds their directories, `records` their records."""

    name = "bubblewrap"

    def __init__(self, base: Path, records: Path, images: dict[str, str] | None = None) -> None:
        self._base = base
        self._records = records
        self._images = images or {}
        self._entrance = Entrance()
        self._running: dict[str, _Running] = {}

    async def start(self, spec: Spec, owner: Owner | None) -> Inside:
        """Start a sandbox. Raises: BoundaryError("sandbox")."""
        prepare(self._base, self._records)
        name, uid = new_name(), new_uid()
        record = Record(
            *(name, self.name, spec.image, 0, 0, uid, str(self._base / name), spec.workdir),
            *(spec.limits, environment(spec)),
            owner=owner,
        )
        write_record(self._records, record)
        try:
            shared = make_shared(Path(record.directory), uid)
            record = await self._spawn(record, _arguments(self._image(spec), spec, shared))
            write_record(self._records, record)
        except BaseException:
            await asyncio.shield(self.remove(record))
            raise
        return Inside(record, self._entrance, lambda: self.remove(record))

    def _image(self, spec: Spec) -> str:
        if not spec.image:
            return ""
        image = self._images.get(spec.image)
        if image is None or not Path(image).is_dir():
            known = ", ".join(self._images) or "none"
            why = f"no image {spec.image!r} that is a directory; there are: {known}"
            raise BoundaryError("sandbox", why, retry=False)
        return image

    async def _spawn(self, record: Record, arguments: list[str]) -> Record:
        told, tell = os.pipe()
        end, lifeline = os.pipe()
        command = [_program(), "--info-fd", str(tell), *arguments, "--", *FIRST]
        if record.uid != os.getuid():
            command = self._as_user(record.uid, command)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=end,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(tell,),
                env={"PATH": PATH},
                start_new_session=True,
            )
        except BaseException:
            os.close(told)
            os.close(lifeline)
            raise
        finally:
            os.close(tell)
            os.close(end)
        self._running[record.name] = _Running(process, lifeline)
        pid = await self._first_process(process, told)
        return replace(record, pid=pid, started=start_time(pid))

    def _as_user(self, uid: int, command: list[str]) -> list[str]:
        """Let root's mounts be made by root, and everything else be done by a user of no rights."""
        stage = self._base / "stage"
        stage.mkdir(mode=0o711, exist_ok=True)
        command, sources = list(command), []
        for place, word in enumerate(command):
            if word in {"--ro-bind", "--ro-bind-try"} and not command[place + 1].startswith("/usr"):
                sources.append(command[place + 1])
                command[place + 1] = f"@{len(sources) - 1}"
        asked = {"uid": uid, "stage": str(stage), "sources": sources}
        script = str(Path(launch.__file__).resolve())
        return [sys.executable, "-I", "-S", script, orjson.dumps(asked).decode(), *command]

    async def _first_process(self, process: asyncio.subprocess.Process, told: int) -> int:
        """Return the first process inside, once its root is made."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(told, "rb")
        )
        try:
            text = await asyncio.wait_for(reader.read(), START_S)
            pid = int(orjson.loads(text or b"{}").get("child-pid", 0))
            async with asyncio.timeout(START_S):
                while pid and not _is_first(pid) and process.returncode is None:
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise BoundaryError("sandbox", f"bwrap took over {START_S:g} s to start") from None
        finally:
            transport.close()
        if not pid or process.returncode is not None:
            assert process.stderr is not None
            why = (await process.stderr.read(2000)).decode("utf-8", "replace").strip()
            raise BoundaryError("sandbox", f"bwrap: {why}")
        return pid

    async def remove(self, record: Record) -> None:
        """End a sandbox and remove what it had. Raises: BoundaryError("sandbox")."""
        running = self._running.pop(record.name, None)
        if running is not None:
            os.close(running.lifeline)
        if record.pid:
            await end_process(record.pid, record.started)
        if running is not None:
            with suppress(ProcessLookupError):
                running.process.kill()
            try:
                await asyncio.wait_for(running.process.communicate(), STOP_S)
            except TimeoutError:
                raise BoundaryError("sandbox", f"{record.name} did not end") from None
        await asyncio.to_thread(remove_tree, Path(record.directory))
        forget_record(self._records, record.name)

    async def close(self) -> None:
        """Close the way in; every sandbox that this object started ends with it.

        Raises: OSError.
        """
        self._entrance.close()
        for running in self._running.values():
            os.close(running.lifeline)
        self._running.clear()


def _program() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise BoundaryError("sandbox", "bubblewrap is not installed (no bwrap)", retry=False)
    return found


def _arguments(image: str, spec: Spec, shared: Path) -> list[str]:
    size = ["--size", str(spec.limits.disk_bytes)]
    network = ["--share-net"] if spec.limits.network else []
    return [
        *("--unshare-user", "--unshare-all", *network, "--die-with-parent", "--new-session"),
        *("--as-pid-1", "--uid", str(USER), "--gid", str(USER), "--hostname", "sandbox"),
        *("--clearenv", "--setenv", "PATH", PATH, "--cap-drop", "ALL"),
        *(_image_root(Path(image)) if image else _host_root(shared.parent.parent)),
        *("--proc", "/proc", "--dev", "/dev", *size, "--tmpfs", "/dev/shm"),  # noqa: S108
        *("--remount-ro", "/dev", *size, "--tmpfs", "/tmp", *size, "--tmpfs", "/work"),  # noqa: S108
        *(() if image else _interpreter()),
        *("--bind", str(shared), SHARED, "--chdir", "/", "--remount-ro", "/"),
        *(("--dir", spec.workdir) if spec.workdir.startswith("/work/") else ()),
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


def _is_first(pid: int) -> bool:
    """Whether bwrap has become the first program: its root is made then."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() == "cat"
    return False


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


def environment(spec: Spec) -> dict[str, str]:
    """Return the environment of every program inside: nothing of the host's."""
    path = PATH if spec.image else f"{Path(sys.prefix, 'bin')}:{PATH}"
    own = {"PATH": path, "HOME": "/work", "USER": "user", "LANG": "C.UTF-8", "TERM": "dumb"}
    return own | dict(spec.environment)


async def end_process(pid: int, started: int) -> None:
    """Kill the first process of a namespace and wait until the kernel has ended them all.

    Raises: BoundaryError("sandbox") after a deadline.
    """
    handle = kill(pid, started)
    if handle is None:
        return
    ended = asyncio.get_running_loop().create_future()

    def note() -> None:
        if not ended.done():
            ended.set_result(None)

    loop = asyncio.get_running_loop()
    loop.add_reader(handle, note)
    try:
        await asyncio.wait_for(ended, STOP_S)
    except TimeoutError:
        raise BoundaryError("sandbox", f"process {pid} did not end by SIGKILL") from None
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def is_available() -> bool:
    """Whether bwrap is installed."""
    return shutil.which("bwrap") is not None
