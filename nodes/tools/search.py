"""Tool `search`: texts about a query, from a local corpus or a service; off unless configured.

    search: "corpus:/data/wiki.sqlite"     an SQLite file made by `build_corpus`
    search: "http:https://host/search"     POST {"query": "...", "count": 5} with a bearer key
                                           -> {"results": [{"title": "...", "text": "..."}]}

The key of the service is in the environment variable ROLLMQ_SEARCH_KEY and nowhere else.

Job: find, and write what was found for a model.
Does not know: tasks or sandboxes. Search runs outside of the sandbox.
Invariants: a query is words to be found, never a query language. The corpus is opened read-only.
A service that cannot be reached is a BoundaryError and never an empty answer.
"""

import asyncio
import os
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.errors import BoundaryError

from ..agent import Tool, ToolError

KEY = "ROLLMQ_SEARCH_KEY"
TIMEOUT_S = 20.0
MOST_WORDS = 32
MOST_RESULTS = 10
TEXT_CHARACTERS = 1_500  # shown of each text
ANSWER_BYTES = 4_000_000  # read of a service's answer
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Found:
    """One text."""

    title: str
    text: str


class Search(Protocol):
    """Whoever finds texts."""

    async def find(self, query: str, count: int) -> list[Found]:
        """Return at most `count` texts, the best first.

        Raises: ToolError if the query cannot be searched for; BoundaryError("search") if nothing
        can be searched.
        """
        ...


class Corpus:
    """Full text in an SQLite file, ranked by BM25."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def find(self, query: str, count: int) -> list[Found]:
        """See `Search.find`."""
        words = _WORD.findall(query)[:MOST_WORDS]
        if not words:
            raise ToolError("the query has no words")
        return await asyncio.to_thread(self._find, words, count)

    def _find(self, words: list[str], count: int) -> list[Found]:
        match = " OR ".join(f'"{word}"' for word in words)
        ask = (
            "SELECT title, snippet(texts, 1, '', '', ' ... ', 64) FROM texts "
            "WHERE texts MATCH ? ORDER BY bm25(texts, 5.0, 1.0), rowid LIMIT ?"
        )
        try:
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as corpus:
                return [Found(*row) for row in corpus.execute(ask, (match, count))]
        except sqlite3.Error as wrong:
            raise BoundaryError("search", f"{self._path}: {wrong}") from wrong


def build_corpus(texts: Iterable[tuple[str, str]], path: Path) -> int:
    """Write titles and texts into a new corpus; return how many there are.

    Raises: FileExistsError; sqlite3.Error if the file cannot be written.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    with closing(sqlite3.connect(path)) as corpus:
        corpus.execute(
            "CREATE VIRTUAL TABLE texts USING fts5(title, text, tokenize='porter unicode61')"
        )
        count = corpus.executemany("INSERT INTO texts VALUES (?, ?)", texts).rowcount
        corpus.commit()
    return max(0, count)


class HttpSearch:
    """A service that answers JSON."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key

    async def find(self, query: str, count: int) -> list[Found]:
        """See `Search.find`."""
        import httpx  # noqa: PLC0415 - most rollouts never search

        asked = {"query": query, "count": count}
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            async with (
                httpx.AsyncClient(timeout=TIMEOUT_S) as client,
                asyncio.timeout(TIMEOUT_S),
                client.stream("POST", self._url, json=asked, headers=headers) as answer,
            ):
                answer.raise_for_status()
                body = await _bounded(answer)
            return _results(body)[:count]
        except (httpx.HTTPError, TimeoutError, ValueError) as wrong:
            why = f"{self._url}: {type(wrong).__name__}: {wrong}"
            raise BoundaryError("search", why) from wrong


async def _bounded(answer: Any) -> bytes:
    body = b""
    async for piece in answer.aiter_bytes():
        body += piece
        if len(body) > ANSWER_BYTES:
            raise ValueError(f"the answer is larger than {ANSWER_BYTES} bytes")
    return body


def _results(body: bytes) -> list[Found]:
    import orjson  # noqa: PLC0415 - beside httpx

    answer = orjson.loads(body)
    results = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
        raise ValueError("the answer has no list of results")
    return [Found(str(each.get("title", "")), str(each.get("text", ""))) for each in results]


def make_search(where: str) -> Search | None:
    """Return what a task's `search` names; None if it is empty: search is off.

    Raises: BoundaryError("handler") if it names nothing that is known.
    """
    kind, _, place = where.partition(":")
    if not where:
        return None
    if kind == "corpus" and place:
        return Corpus(Path(place))
    if kind == "http" and place.startswith(("http://", "https://")):
        return HttpSearch(place, os.environ.get(KEY, ""))
    raise BoundaryError("handler", f"search {where!r}: give corpus:FILE or http:URL", retry=False)


def search_tool(search: Search) -> Tool:
    """Return the tool `search`."""

    async def find(query: str, count: int = 5) -> str:
        found = await search.find(query, count)
        if not found:
            return "[nothing found]"
        texts = (
            f"{n}. {each.title}\n{each.text[:TEXT_CHARACTERS]}" for n, each in enumerate(found, 1)
        )
        return "\n\n".join(texts)

    return Tool("search", "Search for texts about a query.", PARAMETERS, find)


PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "minLength": 1, "description": "words to look for"},
        "count": {"type": "integer", "minimum": 1, "maximum": MOST_RESULTS},
    },
    "required": ["query"],
    "additionalProperties": False,
}
