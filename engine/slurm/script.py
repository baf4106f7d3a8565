"""The batch script of a topology.

Job: say as a script for `sbatch` what a job needs and what it runs.
Does not know: Slurm's answers, files or processes.
Invariants: every value is quoted, for Slurm in its comments and for the shell in the command; a
value with a control character is refused, so that none begins a line of its own.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import NodeFailed

KEY = re.compile(r"[a-z][a-z0-9-]*")
PLAIN = re.compile(r"[\w.,:/@%+=-]*", re.ASCII)
FIXED = ("requeue", "no-kill")
FIRST_LINE = "#!/bin/bash"


def batch_script(options: Mapping[str, str], command: Sequence[str]) -> str:
    """Return a script: options of sbatch by name, with an empty value for a flag, and a command.

    The shell is replaced by the command, so that a signal for the batch script reaches it.

    Raises: NodeFailed if a value cannot be said in a line, or a name is none of sbatch's.
    """
    lines = [_directive(name, value) for name, value in options.items()]
    words = " ".join(shlex.quote(_one_line(word, "an argument")) for word in command)
    return "\n".join([FIRST_LINE, *lines, "", f"exec {words}", ""])


def job_options(name: str, nodes: int, output: Path, grace_s: int, signal: str) -> dict[str, str]:
    """Return what every job of a topology asks for.

    output: the file of what the job says, in which %j is its id. grace_s: how long before the time
    limit the job is asked to drain, with the signal of this name.
    """
    return {
        "job-name": name,
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "output": f"{str(output.parent).replace('%', '%%')}/{output.name}",
        **dict.fromkeys(FIXED, ""),
        "open-mode": "append",
        "signal": f"B:{signal}@{grace_s}",
    }


def _directive(name: str, value: str) -> str:
    if not KEY.fullmatch(name):
        raise NodeFailed(f"no option of sbatch: {name!r}")
    _one_line(value, f"--{name}")
    return f"#SBATCH --{name}={_quoted(value)}" if value else f"#SBATCH --{name}"


def _quoted(value: str) -> str:
    """Quote for sbatch, to which a backslash keeps the next letter, even within quotes."""
    if PLAIN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _one_line(value: str, what: str) -> str:
    if not value.isprintable():
        raise NodeFailed(f"{what}: control characters are not allowed: {value!r}")
    return value
