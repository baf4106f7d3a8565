"""A real vLLM server on CPU with the tiny model, for tests marked `vllm`; see `make vllm`.

with served(MODELS / "tiny", directory) as url: ...
greedy(MODELS / "other", prompt, 16)      # what transformers says, in vLLM's environment
"""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engine.process import child_environment
from nodes.backends.vllm.options import Options, command
from nodes.backends.vllm.server import HOST, free_port

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
TINY, OTHER = ROOT / ".cache/models/tiny", ROOT / ".cache/models/other"
START_S = 900.0  # half a minute where nothing else runs
SCRIPT_S = 240.0
CONTEXT_TOKENS = 2048
ARGUMENTS = (
    *("--enforce-eager", "--dtype", "float32", "--block-size", "32"),
    *("--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", "32"),
)
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
OWN = {
    "model": str(TINY),
    "python": str(PYTHON),
    "arguments": list(ARGUMENTS),
    "environment": ENVIRONMENT,
}


@contextmanager
def served(model: Path, directory: Path) -> Iterator[str]:
    """Run a server until the end; yield its URL once it is healthy."""
    assert PYTHON.exists(), "there is no .venv-vllm: run `make vllm`"
    assert model.exists(), f"there is no {model}: run `make vllm`"
    port = free_port()
    options = Options(model=str(model), python=str(PYTHON), arguments=ARGUMENTS)
    guard = [sys.executable, "-m", "nodes.backends.vllm.guard"]
    environment = {**child_environment(), **ENVIRONMENT, "VLLM_SERVER_DEV_MODE": "1"}
    log = directory / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*guard, *command(options, port, ROOT)], stdout=output, stderr=output, env=environment
        )
    try:
        _until_healthy(f"http://{HOST}:{port}", process, log)
        yield f"http://{HOST}:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + START_S
    while True:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        assert time.monotonic() < give_up_at, log.read_text(errors="replace")[-3000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)


def load_weights(url: str, model: Path, version: str = "0") -> None:
    """Put other weights into a server, around any backend."""
    reload = {"method": "reload_weights", "kwargs": {"weights_path": str(model)}}
    calls = (
        ("/pause?mode=wait", {}),
        ("/collective_rpc", reload),
        ("/update_weight_version", {"new_version": version}),
        ("/reset_prefix_cache", {}),
        ("/resume", {}),
    )
    for path, body in calls:
        asked = urllib.request.Request(
            url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=120):
            pass


def transformers(model: Path, work: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Run tests/vllm/reference.py on some work, in the environment of vLLM."""
    given, found = directory / "given.json", directory / "found.json"
    given.write_text(json.dumps({"model": str(model), **work}))
    script = ROOT / "tests" / "vllm" / "reference.py"
    subprocess.run(
        [str(PYTHON), str(script), str(given), str(found)],
        check=True,
        timeout=SCRIPT_S,
        env={**child_environment(), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    answer: dict[str, Any] = json.loads(found.read_text())
    return answer


def greedy(model: Path, prompt: Any, count: int, directory: Path) -> list[int]:
    """Return the tokens that transformers finds most likely, one after the other."""
    work = {"greedy": {"prompt": np.asarray(prompt).tolist(), "count": count}}
    tokens: list[int] = transformers(model, work, directory)["greedy"]
    return tokens


def logprobs(
    model: Path, rows: list[list[int]], temperature: float, directory: Path
) -> list[list[float]]:
    """Return each row's log-probability of each of its tokens but the first."""
    work = {"rows": rows, "temperature": temperature}
    found: list[list[float]] = transformers(model, work, directory)["rows"]
    return found


def metric(url: str, name: str) -> float:
    """Return one of a server's own figures, such as `num_requests_running`."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    found = re.findall(rf"^vllm:{name}{{[^}}]*}} ([0-9.e+]+)$", text, re.MULTILINE)
    assert found, f"no {name} in the server's metrics"
    return sum(map(float, found))
