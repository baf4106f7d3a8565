"""What a sandbox is, whoever provides it.

Job: the records and protocols between task kinds, tools and providers.
Does not know: namespaces, Apptainer, processes or the run directory.
Invariants: what a program inside does is a result (`Finished`) and never an exception; a sandbox
that cannot be started, entered or reached is a BoundaryError("sandbox") and never a result.

**Who creates directories.** The provider makes `/work` and `/tmp`, empty and private to the
sandbox, and the shared directory; a program that starts in `Spec.workdir` finds it there; `write`
makes the parents of a file. Nobody else makes any.

**What a timeout does.** `exec` kills the whole process group that it started with SIGKILL, keeps
what was written until then, and sets `timed_out`. Processes that left the group, and everything
that other calls started, live on until `stop`.

**How output is cut.** `limits.output_bytes` of standard output and as many of standard error are
kept, from the beginning; the rest is read and thrown away, so that the program is never blocked,
and `cut` is set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

EntryKind = Literal["file", "directory", "link", "other"]
MIB = 1024 * 1024
Argv = list[str]
NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one sandbox.

    memory_bytes: address space of each process. total_bytes: memory of all processes together, with
    files in memory; over it the largest processes are ended by SIGKILL, and the sandbox where its
    files alone are more. cpu_s: processor seconds of each process.
    processes: processes and threads at once. output_bytes: kept of each stream of one `exec`.
    wall_s: life of the sandbox, after which it is stopped. disk_bytes: of /work, of /tmp,
    and of the shared directory, over which the sandbox is ended.
    network: the host's network; without it there is a loopback device and nothing else.
    """

    memory_bytes: int = 2048 * MIB
    total_bytes: int = 4096 * MIB
    cpu_s: float = 600.0
    processes: int = 256
    output_bytes: int = MIB
    wall_s: float = 3600.0
    disk_bytes: int = 1024 * MIB
    network: bool = False


@dataclass(frozen=True, slots=True)
class Spec:
    """What a task asks for.

    image: a name from `sandboxes.images` of the topology; "" is the provider's default root.
    environment: added to the sandbox's own, which has nothing of the host's. workdir: where
    programs start, an absolute path inside.
    """

    image: str = ""
    limits: Limits = field(default_factory=Limits)
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/work"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a sandbox is: an attempt of a rollout, in one start of one worker."""

    rollout_id: str
    attempt: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program inside ended.

    exit_code: its status, -N if signal N ended it, None if it was stopped for the timeout.
    stdout, stderr: what was kept. seconds: from the call to the end.
    """

    exit_code: int | None
    stdout: bytes
    stderr: bytes
    cut: bool
    timed_out: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory; `size_bytes` is a file's length, 0 for everything else."""

    name: str
    kind: EntryKind
    size_bytes: int


Entries = list[Entry]


class SandboxFileError(OSError):
    """A path inside cannot be read, written or listed: a result for whoever asked for that path.

    `strerror` says why in the system's words; nothing of the host is named.
    """


class Sandbox(Protocol):
    """A started sandbox. Its processes, files and variables of shells stay until `stop`."""

    @property
    def name(self) -> str:
        """Its name, unique on this host over all runs and time."""
        ...

    @property
    def provider(self) -> str:
        """The name of its provider."""
        ...

    async def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float,
        cwd: str = "",
        environment: Mapping[str, str] = NOTHING,
    ) -> Finished:
        """Run a program to its end and return what it did.

        A program that cannot be found or run has exit code 127 or 126 and says so on stderr; so
        does one whose `cwd` is missing. The call returns when the program has ended, even if
        children of it hold its output open; what they wrote until then is kept.

        Raises: BoundaryError("sandbox") if the sandbox is gone or cannot be entered.
        """
        ...

    def terminal(self, argv: Sequence[str]) -> Argv:
        """Return the host's argv that runs `argv` inside on the caller's pseudo-terminal.

        For `ptyprocess`: the terminal becomes the controlling one of a session inside, so that
        interrupts and job control work. Bytes pass through the terminal alone. It ends with the
        status of `argv`; killing it kills `argv`.
        """
        ...

    def inside(self, argv: Sequence[str]) -> Argv:
        """Return the host's argv that runs `argv` inside on the caller's standard streams.

        For `Popen`. It ends with the status of `argv`; killing it kills `argv`, and so does the end
        of the thread that started it.
        """
        ...

    @property
    def shared_dir(self) -> Path:
        """A directory of the host that is bound into this sandbox alone; its path is short.

        For Unix sockets of kernels, and files. What lies there was written by the sandbox: open
        nothing in it that may be a symbolic link.
        """
        ...

    @property
    def shared_inside(self) -> str:
        """Where the shared directory is inside."""
        ...

    async def read(self, path: str, most_bytes: int) -> bytes:
        """Return a regular file's bytes, at most so many; paths are those inside.

        Raises: SandboxFileError if there is no such regular file; BoundaryError("sandbox").
        """
        ...

    async def write(self, path: str, data: bytes) -> None:
        """Write a regular file, and the directories above it that are missing.

        Raises: SandboxFileError if it cannot be written (also: the disk is full);
        BoundaryError("sandbox").
        """
        ...

    async def list(self, path: str) -> Entries:
        """Return a directory's entries by name, at most 10,000 of them.

        Raises: SandboxFileError if there is no such directory; BoundaryError("sandbox").
        """
        ...

    async def stop(self) -> None:
        """End every process, unmount and remove everything. A second call does nothing.

        Raises: BoundaryError("sandbox") if something is left after a deadline.
        """
        ...


class Provider(Protocol):
    """A way to make sandboxes."""

    @property
    def name(self) -> str:
        """Its name: apptainer, bubblewrap or process."""
        ...

    async def start(self, spec: Spec, owner: Owner) -> Sandbox:
        """Start a sandbox.

        Raises: BoundaryError("sandbox"), without retry if the spec can never be met.
        """
        ...
