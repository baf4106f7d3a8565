"""Runs tests/trainers/train.py in the environment that `make trl` makes."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import Task

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-trl" / "bin" / "python"
TRAIN_S = 1500.0


def python(script: Path, *arguments: Path) -> None:
    """Run a script; what it said is in the error if it fails."""
    assert PYTHON.exists(), "there is no .venv-trl: run `make trl`"
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [str(PYTHON), str(script), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=TRAIN_S,
        env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-6000:]}"


def train(
    directory: Path, topology: Path, model: Path, tasks: Sequence[Task], **settings: Any
) -> dict[str, Any]:
    """Train for some steps; return what tests/trainers/train.py wrote down."""
    given = {
        "topology": str(topology),
        "model": str(model),
        "tasks": [{"task_id": t.task_id, "kind": t.kind, "payload": t.payload} for t in tasks],
        "output": str(directory / "output"),
        "weights": None,
        "retries": 0,
    }
    (directory / "given.json").write_text(json.dumps(given | settings))
    python(Path(__file__).with_name("train.py"), directory / "given.json", directory / "found.json")
    found: dict[str, Any] = json.loads((directory / "found.json").read_text())
    return found
