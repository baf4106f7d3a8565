"""Run something inside a sandbox that runs already: by its namespaces, from outside.

    python -I -S enter.py TARGET tty|plain ARGV...     in the foreground, ends with ARGV's status
    python -I -S enter.py serve                        requests over the Unix socket on stdin

Job: join the namespaces of a process, give up every privilege, fork, and become ARGV, or do one
operation on files as a program inside would. For whoever starts a sandbox: put an empty tmpfs on
paths of it, and forbid user namespaces inside.
Does not know: providers, rollouts, asyncio. It imports the standard library alone, so that it
starts in milliseconds, without site packages and without this package.
Invariants: a process id is believed only with its start time. Whatever touches the sandbox's files
does so below its root, with its user, without capabilities and without new privileges. What is
started here dies when its starter does. A fork of the server takes one request and ends. SIGHUP
kills the program in the foreground, and then this process ends, having buried it: as an orphan it
would hold the sandbox up until the machine's first process has buried it, which in a container may
be late, or never.

As root a sandbox has a user of its own, without any rights on the host; its namespaces belong to
that user, and it is that user who enters.
"""

import array
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
import termios
import warnings  # noqa: F401 - what os.execvpe would look for inside
from typing import Any, NoReturn

NAMESPACES = (
    ("cgroup", 0x02000000),
    ("ipc", 0x08000000),
    ("uts", 0x04000000),
    ("net", 0x40000000),
    ("pid", 0x20000000),
    ("mnt", 0x00020000),
)
NEWUSER = 0x10000000
NOSUID, NODEV = 2, 4
NS_GET_PARENT = 0xB702
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
CAPABILITY_VERSION_3 = 0x20080522
LAST_CAPABILITY = 63
CANNOT_RUN, NOT_FOUND, CANNOT_ENTER = 126, 127, 125
GONE = "the sandbox is gone"
MOST_ENTRIES = 10_000
PIECE_BYTES = 1 << 16
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
AS_BY_DEFAULT = (signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)
REQUEST_FDS = 5  # the request, standard input, output and error, and the control socket

Target = dict[str, Any]
libc = ctypes.CDLL(None, use_errno=True)


class CannotEnter(Exception):  # noqa: N818 - reads as the event that it reports
    """The sandbox's namespaces cannot be joined."""


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if there is none, or a dead one.

    Raises: OSError if /proc cannot be read.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib costs milliseconds
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in {b"Z", b"X"} else int(fields[19])


def join(target: Target) -> None:
    """Become a process below the sandbox's root, in all its namespaces, without privileges.

    Only children are in the process-id namespace. Raises: CannotEnter.
    """
    try:
        _be_user(target["uid"])
        if target["pid"]:
            _join_namespaces(target["pid"], target["started"])
        _give_up_privileges(target["limits"])
    except OSError as wrong:
        alive = start_time(target["pid"]) == target["started"]
        raise CannotEnter(f"cannot be entered: {wrong}" if alive else GONE) from None


def _join_namespaces(pid: int, started: int) -> None:
    names = {name: os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name, _ in NAMESPACES}
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY)
    users = _users(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY))
    if start_time(pid) != started:
        raise CannotEnter(GONE)
    if users:
        _set(users[0], NEWUSER)
    for name, kind in NAMESPACES:
        if not os.path.samestat(os.fstat(names[name]), os.stat(f"/proc/self/ns/{name}")):  # noqa: PTH116
            _set(names[name], kind)
    for user in users[1:]:
        _set(user, NEWUSER)
    os.fchdir(root)
    os.chroot(".")


def mount(target: Target) -> None:
    """Put an empty tmpfs of `size_bytes` on each of `paths` inside. Raises: CannotEnter."""
    options = f"size={target['size_bytes']},mode=0755".encode()
    try:
        _be_user(target["uid"])
        _join_namespaces(target["pid"], target["started"])
        for path in target["paths"]:
            _mount_tmpfs(path, options)
    except OSError as wrong:
        raise CannotEnter(f"what can be written cannot be bounded: {wrong}") from None


def _mount_tmpfs(path: str, options: bytes) -> None:
    if libc.mount(b"tmpfs", path.encode(), b"tmpfs", NOSUID | NODEV, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def seal(target: Target) -> None:
    """Let nobody inside make user namespaces, in which a program could mount past every bound.

    Raises: CannotEnter.
    """
    try:
        _be_user(target["uid"])
        users = _users(os.open(f"/proc/{target['pid']}/ns/user", os.O_RDONLY))
        if start_time(target["pid"]) != target["started"] or not users:
            raise CannotEnter(GONE)
        for user in users:
            _set(user, NEWUSER)
        with open("/proc/sys/user/max_user_namespaces", "w") as file:  # noqa: PTH123
            file.write("0")
    except OSError as wrong:
        raise CannotEnter(f"user namespaces inside cannot be forbidden: {wrong}") from None


def _users(innermost: int) -> list[int]:
    """Return the user namespaces from the one below ours to the sandbox's."""
    ours = os.stat("/proc/self/ns/user")  # noqa: PTH116
    found: list[int] = []
    while not os.path.samestat(os.fstat(innermost), ours):
        found.insert(0, innermost)
        innermost = fcntl.ioctl(innermost, NS_GET_PARENT)
    return found


def _set(descriptor: int, kind: int) -> None:
    if libc.setns(descriptor, kind):
        raise OSError(ctypes.get_errno(), f"setns {kind:#x}: {os.strerror(ctypes.get_errno())}")


def _be_user(uid: int) -> None:
    if os.getuid() != uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _give_up_privileges(limits: dict[str, float]) -> None:
    for capability in range(LAST_CAPABILITY + 1):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # refused past the last, and without any
    header, nothing = struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.capset(header, nothing):
        raise OSError(ctypes.get_errno(), "privileges cannot be given up")
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    memory, disk = int(limits["memory_bytes"]), int(limits["disk_bytes"])
    cpu_s, processes = max(1, int(limits["cpu_s"])), int(limits["processes"])
    for kind, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NPROC, processes, processes),
        (resource.RLIMIT_FSIZE, disk, disk),
        (resource.RLIMIT_NOFILE, 1024, 4096),
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1),
        (resource.RLIMIT_AS, memory, memory),
    ):
        most = resource.getrlimit(kind)[1]
        top = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(kind, (min(soft, top), top))


def _die_with(parent: int) -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:
        os._exit(CANNOT_ENTER)


def start(request: Target, *, tty: bool) -> int:
    """Fork the program of a request, once inside; return its process id as the host counts.

    Raises: OSError if the sandbox may have no further process.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        _die_with(0)  # across process-id namespaces there is no parent's id to compare
        for number in (*FORWARDED, *AS_BY_DEFAULT):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        if tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.closerange(3, 4096)
        _become(request)
    except OSError as wrong:
        _say(2, f"{wrong.strerror}: {wrong.filename or request['cwd']}\n")
        os._exit(NOT_FOUND if isinstance(wrong, FileNotFoundError) else CANNOT_RUN)
    except BaseException:  # noqa: BLE001 - a fork must never return into its parent's code
        os._exit(CANNOT_ENTER)


def _become(request: Target) -> NoReturn:
    operation = request.get("operation", "exec")
    if operation != "exec":
        _on_file(operation, request["argv"][0], request)
    if request["cwd"] == request["workdir"]:
        os.makedirs(request["workdir"], exist_ok=True)  # noqa: PTH103
    os.chdir(request["cwd"])
    os.execvpe(request["argv"][0], request["argv"], request["environment"])  # noqa: S606


def _on_file(operation: str, path: str, request: Target) -> NoReturn:
    """Read, write or list: an exit status of 0, or the errno on standard error."""
    try:
        os.chdir("/")
        path = os.path.join(request["workdir"], path)  # noqa: PTH118
        {"read": _read, "write": _write, "list": _list}[operation](path, request)
    except OSError as wrong:
        _say(2, str(wrong.errno or errno.EIO))
        os._exit(1)
    os._exit(0)


def _read(path: str, request: Target) -> None:
    source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    _expect_regular(source)
    left = request["most_bytes"]
    while left and (piece := os.read(source, min(left, PIECE_BYTES))):
        _write_all(1, piece)
        left -= len(piece)


def _write(path: str, _request: Target) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY
    sink = os.open(path, flags, 0o644)
    _expect_regular(sink)
    os.ftruncate(sink, 0)
    while piece := os.read(0, PIECE_BYTES):
        _write_all(sink, piece)
    os.close(sink)


def _list(path: str, _request: Target) -> None:
    entries = []
    with os.scandir(path) as found:
        for entry in found:
            about = entry.stat(follow_symlinks=False)
            kind = _kind(about.st_mode)
            name = os.fsencode(entry.name).decode("utf-8", "replace")
            entries.append((name, kind, about.st_size if kind == "file" else 0))
            if len(entries) == MOST_ENTRIES:
                break
    _write_all(1, json.dumps(sorted(entries)).encode())


def _kind(mode: int) -> str:
    tests = {"file": stat.S_ISREG, "directory": stat.S_ISDIR, "link": stat.S_ISLNK}
    return next((kind for kind, is_one in tests.items() if is_one(mode)), "other")


def _expect_regular(descriptor: int) -> None:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, os.strerror(number))


def _write_all(sink: int, data: bytes) -> None:
    while data:
        data = data[os.write(sink, data) :]


def _say(sink: int, text: str) -> None:
    _write_all(sink, text.encode("utf-8", "replace"))


def foreground(target: Target, *, tty: bool) -> NoReturn:
    """Run a program on our own streams and end as it ends."""
    parent = os.getppid()
    try:
        join(target)
        _die_with(parent)  # not before: a change of user or of namespace undoes it
        if tty:
            _let_go_of_the_terminal()
        pid = start(target, tty=tty)
    except (CannotEnter, OSError) as wrong:
        _say(2, f"{wrong}\n")
        os._exit(CANNOT_ENTER if isinstance(wrong, CannotEnter) else CANNOT_RUN)
    for number in FORWARDED:
        signal.signal(number, lambda received, _: os.kill(pid, received))
    signal.signal(signal.SIGHUP, lambda *_: _kill_group(pid))
    for stream in (0, 1, 2):
        os.close(stream)  # a pipe of the caller's ends when the program's copy does
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _let_go_of_the_terminal() -> None:
    """Give up our controlling terminal, so that the program can have it as its own."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    terminal = os.open("/dev/tty", os.O_RDWR) if not os.isatty(0) else 0
    fcntl.ioctl(terminal, termios.TIOCNOTTY)


def serve(requests: socket.socket) -> None:
    """Take requests until the other end is closed; a fork serves each."""
    _die_with(0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are buried by the kernel
    while True:
        descriptors = _receive(requests)
        if not descriptors:
            return
        if os.fork() == 0:
            _serve_one(requests, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _receive(requests: socket.socket) -> list[int]:
    size = REQUEST_FDS * array.array("i").itemsize
    message, ancillary, _, _ = requests.recvmsg(1, socket.CMSG_SPACE(size))
    descriptors = array.array("i")
    for _level, _kind, data in ancillary:
        descriptors.frombytes(data)
    return list(descriptors) if message else []


def _serve_one(requests: socket.socket, descriptors: list[int]) -> None:
    """Do what one request asks for, and end."""
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, *streams, last = descriptors
    control = socket.socket(fileno=last)
    requests.close()
    try:
        asked: Target = json.loads(os.pread(request, os.fstat(request).st_size, 0))
        arrange = {"seal": seal, "mount": mount}.get(asked.get("operation", ""))
        if arrange is not None:
            arrange(asked)
            control.send(b"S0")
            return
        join(asked)
        _die_with(parent)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        pid = start(asked, tty=False)
        for stream in (0, 1, 2, request, *streams):
            os.close(stream)
        _watch(pid, control)
    except CannotEnter as wrong:
        control.send(f"E{wrong}".encode())
    except OSError as wrong:
        _say(2, f"cannot start: {wrong.strerror}\n")
        control.send(f"S{CANNOT_RUN}".encode())
    finally:
        os._exit(0)


def _watch(pid: int, control: socket.socket) -> None:
    """Wait for the program; anything that is heard, and the end of the caller, kill its group."""
    program = os.pidfd_open(pid)
    listening = [program, control.fileno()]
    while True:
        ready, _, _ = select.select(listening, [], [])
        if program in ready:
            break
        control.recv(1)  # left unread it would turn our report into a reset
        _kill_group(pid)
        listening = [program]
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    control.send(f"S{code}".encode())


def _kill_group(pid: int) -> None:
    """Kill a program of ours that has not been waited for, and its group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)  # not yet a group of its own


def main() -> None:
    """Read the arguments; see the module's docstring."""
    if sys.argv[1] == "serve":
        serve(socket.socket(fileno=0))
        return
    target: Target = json.loads(sys.argv[1])
    target["argv"] = sys.argv[3:]
    foreground(target, tty=sys.argv[2] == "tty")


if __name__ == "__main__":
    main()
