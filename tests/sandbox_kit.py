"""Sandboxes for tests: providers in places of their own, and what is left of them afterwards."""

import os
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nodes.sandboxes.apptainer import Apptainer
from nodes.sandboxes.bubblewrap import Bubblewrap
from nodes.sandboxes.contract import Limits, Owner, Sandbox
from nodes.sandboxes.process import Process

IMAGE = "ROLLMQ_TEST_IMAGE"  # a SIF file or directory with Python, for tests with Apptainer
REQUIRED = "ROLLMQ_TEST_ALL"  # set: a missing provider fails its tests
OWNER = Owner("g-0:0", 1, "init-0-000000000000")
S = 60.0
MIB = 1024 * 1024
SMALL = Limits(memory_bytes=256 * MIB, processes=32, disk_bytes=8 * MIB, output_bytes=4096)
ISOLATING = ("bubblewrap", pytest.param("apptainer", marks=pytest.mark.apptainer))
ALL = (*ISOLATING, "process")

Play = Callable[..., None]
Scene = Callable[[Sandbox], Awaitable[None]]
everywhere = pytest.mark.parametrize("provider", ALL)
isolated = pytest.mark.parametrize("provider", ISOLATING)


def make_provider(name: str, place: Path) -> Any:
    """Return a provider whose directories lie in `place`."""
    base, records = place / "b", place / "records"
    place.chmod(0o755)
    if name == "apptainer":
        return Apptainer(base, records, {"": os.environ[IMAGE]})
    return {"bubblewrap": Bubblewrap, "process": Process}[name](base, records)


def is_installed(name: str) -> bool:
    """Whether a provider can be tried here."""
    programs = {"bubblewrap": "bwrap", "apptainer": "apptainer", "process": "sh"}
    return shutil.which(programs[name]) is not None


def need(name: str) -> None:
    """Skip the test, and say so, if a provider is missing; where all are required, fail."""
    if is_installed(name):
        return
    assert REQUIRED not in os.environ, f"{name} is not installed, and {REQUIRED} is set"
    pytest.skip(f"{name} is not installed")


def leftovers(place: Path) -> list[str]:
    """Return what a provider in `place` left: processes, mounts, directories, records."""
    found = [f"process {pid}" for pid in processes_below(place)]
    found += [str(path) for path in (place / "b").glob("sb-*")]
    found += [str(path) for path in (place / "records").glob("*")]
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return found + [line for line in mounts if str(place) in line]


def processes_below(place: Path) -> list[int]:
    """Return this machine's processes with something of `place` mounted or as theirs."""
    ours = Path("/proc/self/ns/mnt").stat().st_ino
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            foreign = (path / "ns/mnt").stat().st_ino != ours
            told = (path / "mountinfo").read_text(encoding="utf-8") if foreign else ""
            told += (path / "environ").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if f"{place}/b" in told:
            found.append(int(path.name))
    return found


async def until(sandbox: Sandbox, command: list[str], wanted: bytes) -> None:
    """Run a command inside until it says what is wanted; there is a deadline."""
    deadline = time.monotonic() + S
    while (done := await sandbox.exec(command, timeout_s=S)).stdout != wanted:
        assert time.monotonic() < deadline, done
