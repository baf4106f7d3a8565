"""What topology.yaml may say under `options` of a backend of kind vllm.

Job: read the options, and derive the command and the environment of a server from them.
Does not know: processes, sockets or files.
Invariants: exactly one of `url` and `model` is given; what belongs to a server that rollmq starts
is refused beside a URL. Flags without which rollouts would be wrong are always there. An API key is
named, and never in a command.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from engine.errors import NodeFailed
from engine.topology import BackendSpec
from engine.typed import AtLeast, Mismatch, compile_decoder

FLAGS = ("--enable-scale-out", "--enable-prompt-tokens-details")
LOGPROBS = ("--logprobs-mode", "processed_logprobs")
MODULE = "vllm.entrypoints.openai.api_server"
HOST = "127.0.0.1"
LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Options:
    """Where the server is, or how to start it."""

    url: Annotated[str, "an existing server, such as http://127.0.0.1:8000"] = ""
    model: Annotated[str, "what a server of our own serves: a directory or a name"] = ""
    python: Annotated[str, "the interpreter of vLLM's environment"] = "python"
    arguments: Annotated[tuple[str, ...], "more of the server's flags"] = ()
    environment: Annotated[dict[str, str] | None, "more of the server's environment"] = None
    gpus: Annotated[str, "for all processes of this backend together: `0,1`"] = ""
    api_key_env: Annotated[str, "the environment variable that holds the server's API key"] = ""
    request_s: Annotated[float, AtLeast(1), "how long one completion may take"] = 3600.0
    silence_s: Annotated[float, AtLeast(1), "without an answer to /health the server is lost"] = (
        30.0
    )


_OWN_ONLY = ("arguments", "environment", "gpus", "python")


def read_options(options: Mapping[str, object]) -> Options:
    """Return the options of a backend of kind vllm.

    Raises: NodeFailed, naming the option at fault.
    """
    try:
        found = compile_decoder(Options)(dict(options))
    except Mismatch as wrong:
        raise NodeFailed(f"vllm options: {wrong}") from None
    if bool(found.url) == bool(found.model):
        raise NodeFailed("vllm options: give either `url`, or `model` for a server of our own")
    odd = [name for name in _OWN_ONLY if name in options]
    if found.url and odd:
        raise NodeFailed(f"vllm options: {odd[0]} is of a server of our own, and `url` is given")
    if found.url and not found.url.startswith(("http://", "https://")):
        raise NodeFailed(f"vllm options: url: expected http://..., got {found.url!r}")
    return found


def command(options: Options, port: int, directory: Path) -> list[str]:
    """Return the command of a server on a loopback port.

    Paths in the options are relative to `directory`, that of topology.yaml, where there is such a
    thing; otherwise `model` is a name and `python` is looked up in PATH.
    """
    model = _path(options.model, directory)
    name = Path(options.model).name[:LONGEST_NAME]
    given = {each.partition("=")[0] for each in options.arguments}
    made = [_path(options.python, directory), "-m", MODULE, "--model", model]
    if "--served-model-name" not in given:
        made += ["--served-model-name", name]
    made += ["--host", HOST, "--port", str(port)]
    made += [flag for flag in FLAGS if flag not in given]
    if LOGPROBS[0] not in given:
        made += LOGPROBS
    return [*made, *options.arguments]


def environment(
    options: Options, spec: BackendSpec, index: int, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of the server of process `index` of a backend.

    Raises: NodeFailed if the GPUs cannot be divided among the processes, or as `api_key`.
    """
    made = {**inherited, "VLLM_SERVER_DEV_MODE": "1"}  # the routes that update weights
    if options.api_key_env:
        made["VLLM_API_KEY"] = api_key(options, inherited)
    if options.gpus:
        made["CUDA_VISIBLE_DEVICES"] = share(options.gpus, spec.count, index)
    return {**made, **(options.environment or {})}


def api_key(options: Options, inherited: Mapping[str, str]) -> str:
    """Return the key that the server asks for; empty if it asks for none.

    Raises: NodeFailed naming the variable, and never its value, if it holds no key.
    """
    name = options.api_key_env
    if not name:
        return ""
    found = inherited.get(name, "")
    if not found:
        raise NodeFailed(f"vllm options: api_key_env: the environment has no {name}")
    if not all("!" <= letter <= "~" for letter in found):
        raise NodeFailed(f"vllm options: api_key_env: {name} is no key: printable ASCII, no spaces")
    return found


def share(gpus: str, count: int, index: int) -> str:
    """Return the GPUs of process `index` out of `count`: an equal part, in order.

    Raises: NodeFailed if they cannot be divided.
    """
    every = [each.strip() for each in gpus.split(",") if each.strip()]
    if not every or len(every) % count:
        raise NodeFailed(f"vllm options: gpus: {len(every)} cannot be divided among {count}")
    each = len(every) // count
    return ",".join(every[index * each : (index + 1) * each])


def _path(text: str, directory: Path) -> str:
    path = directory / text
    return str(path) if path.exists() else text
