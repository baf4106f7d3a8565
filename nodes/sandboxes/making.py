"""Calls of Apptainer that make an image and read its labels.

Job: `apptainer build` on a definition, and spython's `Client.inspect` on what came out.
Does not know: the cache, and how definitions are written.
Invariants: a call that takes too long, or is broken off, is ended with everything it started. A
build counts only if Apptainer says that it went well.

spython's `Client.build` is not used: it has no deadline, keeps the exit status and the reason of a
failure to itself, and takes any file that lies there for the image. `Client.inspect` has no
deadline either, and calls `singularity`, which not every installation of Apptainer has: so it runs
in a process of its own that can be ended, and in whose PATH that name means Apptainer.
"""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson

from . import mapped
from .images import ImageError

BUILD_S = 3600.0
INSPECT_S = 120.0
SAID_LINES = 20
OF_APPTAINER = "org.label-schema."  # labels that it adds itself
INSPECT = """
import json, sys
from spython.main import Client
json.dump(Client.inspect(sys.argv[1]), sys.stdout)
"""


def make(definition: Path, image: Path, *, scripted: bool, fakeroot: bool) -> None:
    """Build a SIF file. Raises: ImageError with what Apptainer said last.

    scripted: the build runs programs of the image. Root does that in a user namespace where it may
    not have every capability, as in a container: Apptainer asks for all of them.
    """
    program = _apptainer()
    before = mapped.command() if scripted and not fakeroot and _lacks_capabilities() else []
    options = ["--fakeroot"] if fakeroot else []
    command = [*before, program, "build", "--force", *options, str(image), str(definition)]
    _run(command, "apptainer build", BUILD_S, None)
    if not image.exists():
        raise ImageError("apptainer build made no image, and said that it went well")


def labels_of(image: Path) -> dict[str, str]:
    """Return the labels that an image's recipe gave. Raises: ImageError."""
    with TemporaryDirectory() as place:
        Path(place, "singularity").symlink_to(_apptainer())
        environment = {**os.environ, "PATH": f"{place}:{os.environ.get('PATH', os.defpath)}"}
        command = [sys.executable, "-c", INSPECT, str(image.resolve())]
        said = _run(command, "reading the labels", INSPECT_S, environment)
    try:
        labels = orjson.loads(said)["attributes"]["labels"]
    except (ValueError, KeyError) as wrong:
        raise ImageError(f"apptainer inspect did not tell the labels: {said[-500:]!r}") from wrong
    return {key: str(labels[key]) for key in sorted(labels) if not key.startswith(OF_APPTAINER)}


def _apptainer() -> str:
    program = shutil.which("apptainer")
    if program is None:
        raise ImageError("apptainer is not installed, and the image is not in the cache")
    return program


def _run(
    command: list[str], name: str, deadline_s: float, environment: dict[str, str] | None
) -> bytes:
    """Run a command in a process group of its own; return its standard output."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        out, said = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        raise ImageError(f"{name}: not done within {deadline_s:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        last = said.decode("utf-8", "replace").strip().splitlines()[-SAID_LINES:]
        raise ImageError(f"{name} failed:\n  " + "\n  ".join(last))
    return out


def _lacks_capabilities() -> bool:
    """Whether this is root without all that root may have."""
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    permitted = next(line for line in status.splitlines() if line.startswith("CapPrm:")).split()[1]
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    return os.geteuid() == 0 and int(permitted, 16) != (1 << (last + 1)) - 1
