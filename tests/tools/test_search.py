"""The tool `search`: a real corpus, and a real service on loopback."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine.errors import BoundaryError
from nodes.agent import ToolError
from nodes.tools.search import KEY, build_corpus, make_search, search_tool

TEXTS = [
    ("Copper", "Copper melts at 1085 degrees Celsius."),
    ("Tides", "Tides are caused by the Moon and the Sun."),
    ("Moon", "The Moon has no air."),
]


def ask(where: str, query: str, **arguments: Any) -> str:
    search = make_search(where)
    assert search is not None
    return asyncio.run(search_tool(search).call(query, **arguments))


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    assert build_corpus(TEXTS, tmp_path / "c.sqlite") == 3
    return f"corpus:{tmp_path / 'c.sqlite'}"


def test_a_corpus_ranks_what_it_finds(corpus: str) -> None:
    assert ask(corpus, "moon").startswith("1. Moon\nThe Moon has no air.\n\n2. Tides")
    assert ask(corpus, "moon", count=1).count("\n") == 1
    assert ask(corpus, "melting of copper?").startswith("1. Copper")
    assert ask(corpus, "zinc") == "[nothing found]"


@pytest.mark.parametrize("query", ['moon" OR', "title:moon", "NEAR(", "a' --", "moon*", "^moon"])
def test_a_query_is_words_and_no_language(corpus: str, query: str) -> None:
    assert ask(corpus, query)


def test_a_query_without_words_is_the_models_error(corpus: str) -> None:
    with pytest.raises(ToolError, match="no words"):
        ask(corpus, "?!")


def test_a_corpus_that_is_not_there_is_a_failure_and_no_empty_answer(tmp_path: Path) -> None:
    with pytest.raises(BoundaryError) as raised:
        ask(f"corpus:{tmp_path / 'none'}", "moon")
    assert raised.value.boundary == "search"
    assert not (tmp_path / "none").exists()


def test_search_is_off_unless_it_is_configured() -> None:
    assert make_search("") is None
    with pytest.raises(BoundaryError, match="corpus:FILE or http:URL"):
        make_search("wikipedia")


class Service(BaseHTTPRequestHandler):
    """Answers with what it was asked; /broken with an error."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = f"{asked['query']} {asked['count']} {self.headers['Authorization']}"
        body = json.dumps({"results": [{"title": "T", "text": text}]}).encode()
        self.send_response(500 if self.path == "/broken" else 200)
        self.end_headers()
        self.wfile.write(b"[]" if self.path == "/odd" else body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http:http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_service_is_asked_with_the_key_of_the_environment(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "secret")
    assert ask(f"{service}/search", "moon", count=3) == "1. T\nmoon 3 Bearer secret"


@pytest.mark.parametrize("path", ["/broken", "/odd"])
def test_a_service_that_fails_is_a_failure_of_the_infrastructure(service: str, path: str) -> None:
    with pytest.raises(BoundaryError) as raised:
        ask(service + path, "moon")
    assert raised.value.boundary == "search"
