"""A vllm backend whose server refuses, lies, falls silent or goes away; the server is played."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodes.inference import messages as m

from ..fake_router import Peer, backend_process
from ..fake_vllm import IDS, Answer, FakeVllm, completion, fake_vllm, refuse

DEADLINE_S = 60.0


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    with fake_vllm() as server:
        yield server


@pytest.fixture
def peer(server: FakeVllm, short_path: Path) -> Iterator[Peer]:
    with backend_process(short_path, "vllm", {"url": server.url}) as peer:
        peer.join()
        yield peer


def failure(peer: Peer) -> m.GenerateFailed:
    message, _ = peer.answer(peer.ask([1, 2, 3]))
    assert isinstance(message, m.GenerateFailed)
    return message


def test_completions_go_through(peer: Peer) -> None:
    assert peer.complete([1, 2, 3])[1]["token_ids"].tolist() == IDS


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_a_server_that_refuses_but_lives_fails_that_request_alone(
    peer: Peer, server: FakeVllm, status: int
) -> None:
    server.generate = refuse(status)
    failed = failure(peer)
    assert (failed.code, failed.retry) == ("backend_error", True)
    server.generate = completion(-0.5)
    peer.complete([1, 2, 3])


@pytest.mark.parametrize("status", [400, 422])
def test_what_the_server_calls_the_callers_fault_is_final(
    peer: Peer, server: FakeVllm, status: int
) -> None:
    server.generate = refuse(status, "Token id 9 is out of vocabulary")
    failed = failure(peer)
    assert (failed.code, failed.retry) == ("invalid", False)
    assert "out of vocabulary" in failed.message


def test_a_sentinel_is_never_delivered(peer: Peer, server: FakeVllm) -> None:
    server.generate = completion(-9999.0)
    failed = failure(peer)
    assert (failed.code, failed.retry) == ("backend_error", True)


def test_a_server_that_cuts_connections_is_left_and_joined_again(
    peer: Peer, server: FakeVllm
) -> None:
    server.is_up = False
    ticket = peer.ask([1, 2, 3])
    goodbye = peer.wait(m.BackendGoodbye)
    server.is_up = True
    hello = peer.join()
    assert hello.boot_id != goodbye.boot_id
    assert not peer.has_answer(ticket)
    peer.complete([1, 2, 3])


def test_a_server_whose_engine_is_dead_is_left(peer: Peer, server: FakeVllm) -> None:
    server.health = 503
    server.generate = refuse(500)
    ticket = peer.ask([1, 2, 3])
    peer.wait(m.BackendGoodbye)
    assert not peer.has_answer(ticket)


def test_a_server_that_was_left_paused_is_resumed(server: FakeVllm, short_path: Path) -> None:
    server.is_paused = True
    with backend_process(short_path, "vllm", {"url": server.url}) as peer:
        peer.join()
        assert not server.is_paused


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (refuse(403, "disabled"), "--enable-scale-out"),
        (refuse(404), "too old"),
        (completion(-0.7), "--logprobs-mode processed_logprobs"),
        (completion(-9999.0), "a log-probability is -9999.0"),
    ],
)
def test_a_server_of_no_use_ends_the_backend_with_what_to_change(
    server: FakeVllm,
    short_path: Path,
    capfd: pytest.CaptureFixture[str],
    answer: Answer,
    advice: str,
) -> None:
    server.generate = answer
    with backend_process(short_path, "vllm", {"url": server.url}) as peer:
        assert peer.process.wait(DEADLINE_S) == 1
    assert advice in capfd.readouterr().err


def test_a_server_of_our_own_that_cannot_start_is_told_with_its_last_words(
    short_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"model": "none", "python": "/bin/false"}
    with backend_process(short_path, "vllm", options) as peer:
        assert peer.process.wait(DEADLINE_S) == 1
    assert "ended before it served" in capfd.readouterr().err
    assert subprocess.run(["pgrep", "-P", str(peer.process.pid)], check=False).returncode == 1


def test_a_server_with_a_key_gets_it_and_nobody_else_reads_it(
    server: FakeVllm,
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server.api_key = "key-0123456789"
    monkeypatch.setenv("FAKE_KEY", server.api_key)
    options = {"url": server.url, "api_key_env": "FAKE_KEY"}
    with backend_process(short_path, "vllm", options) as peer:
        peer.join()
        assert peer.complete([1, 2, 3])[1]["token_ids"].tolist() == IDS
        server.generate = refuse(401)
        assert failure(peer).code == "backend_error"
        command = Path(f"/proc/{peer.process.pid}/cmdline").read_text()
    said = capfd.readouterr()
    files = [each.read_text(errors="replace") for each in short_path.rglob("*") if each.is_file()]
    assert any("FAKE_KEY" in text for text in files)
    assert not [text for text in (*files, command, *said) if server.api_key in text]


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("another", "name the variable that holds the server's API key in api_key_env"),
        ("", "the environment has no FAKE_KEY"),
        ("a b", "FAKE_KEY is no key"),
    ],
)
def test_a_key_that_is_not_the_servers_ends_the_backend_with_what_to_change(
    server: FakeVllm,
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    value: str,
    advice: str,
) -> None:
    server.api_key = "key-0123456789"
    monkeypatch.setenv("FAKE_KEY", value)
    options = {"url": server.url, "api_key_env": "FAKE_KEY"}
    with backend_process(short_path, "vllm", options) as peer:
        assert peer.process.wait(DEADLINE_S) in {1, 2}
    said = capfd.readouterr().err
    assert advice in said
    assert server.api_key not in said
