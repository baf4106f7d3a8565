"""The options of a vllm backend, and the command and environment that they become."""

from pathlib import Path
from typing import Any

import pytest

from engine.errors import NodeFailed
from engine.topology import BackendSpec
from nodes.backends.vllm.options import Options, api_key, command, environment, read_options, share

SPEC = BackendSpec("vllm", "vllm", "local", 2, 64, {})


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "either `url`, or `model`"),
        ({"url": "http://a:1", "model": "m"}, "either `url`, or `model`"),
        ({"url": "a:1"}, "expected http"),
        ({"url": "http://a:1", "gpus": "0"}, "gpus is of a server of our own"),
        ({"model": "m", "arguments": "--x"}, "arguments: expected an array"),
        ({"model": "m", "modle": 1}, "modle: is not a field here"),
        ({"model": "m", "request_s": 0}, "request_s: expected at least 1"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], why: str) -> None:
    with pytest.raises(NodeFailed, match=why):
        read_options(options)


def test_the_flags_that_rollouts_need_are_always_there(tmp_path: Path) -> None:
    made = command(Options(model="org/tiny", arguments=("--seed", "3")), 8001, tmp_path)
    assert made[:5] == ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", "org/tiny"]
    assert made[made.index("--served-model-name") + 1] == "tiny"
    assert made[made.index("--port") + 1] == "8001"
    assert {"--enable-scale-out", "--enable-prompt-tokens-details"} <= set(made)
    assert made[made.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert made[-2:] == ["--seed", "3"]


def test_what_the_topology_gives_is_not_given_twice(tmp_path: Path) -> None:
    given = ("--served-model-name=m", "--logprobs-mode", "processed_logits")
    made = command(Options(model="tiny", arguments=given), 8001, tmp_path)
    assert made.count("--logprobs-mode") == 1
    assert "--served-model-name" not in made


def test_paths_are_relative_to_the_topology(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    made = command(Options(model="tiny", python="env/bin/python"), 8001, tmp_path)
    assert made[0] == "env/bin/python"
    assert made[made.index("--model") + 1] == str(tmp_path / "tiny")


def test_each_process_has_its_share_of_the_gpus() -> None:
    options = Options(model="m", gpus="0,1,2,3", environment={"A": "b"})
    made = environment(options, SPEC, 1, {"PATH": "/bin"})
    assert made["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert (made["PATH"], made["A"], made["VLLM_SERVER_DEV_MODE"]) == ("/bin", "b", "1")
    assert "CUDA_VISIBLE_DEVICES" not in environment(Options(model="m"), SPEC, 0, {})


@pytest.mark.parametrize(("gpus", "count"), [("0", 2), ("0,1,2", 2), (",", 1)])
def test_gpus_that_cannot_be_divided_are_refused(gpus: str, count: int) -> None:
    with pytest.raises(NodeFailed, match="cannot be divided"):
        share(gpus, count, 0)


def test_a_server_of_our_own_asks_for_the_key_that_is_sent() -> None:
    options = Options(model="m", api_key_env="KEY")
    inherited = {"KEY": "s3cret"}
    assert environment(options, SPEC, 0, inherited)["VLLM_API_KEY"] == "s3cret"
    assert api_key(options, inherited) == "s3cret"
    assert "s3cret" not in " ".join(command(options, 8001, Path()))


@pytest.mark.parametrize("value", ["", " ", "two words", "line\n", "tab\t", "schlüssel"])
def test_a_variable_without_a_key_is_named_and_its_value_is_not(value: str) -> None:
    with pytest.raises(NodeFailed, match="KEY") as caught:
        api_key(Options(url="http://a:1", api_key_env="KEY"), {"KEY": value})
    assert not value.strip() or value not in str(caught.value)
