"""Weights that change while a completion is sampled."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nodes import tokens
from nodes.inference import messages as m

from ..fake_router import Peer, backend_process
from ..vllm_kit import OTHER, TINY, greedy, load_weights

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

PROMPT = tokens.load().opening([("user", "Start with 12. Add 30. What is the result?")])
GREEDY = 24


@pytest.fixture
def peer(short_path: Path, vllm_url: str) -> Iterator[Peer]:
    load_weights(vllm_url, OTHER)  # random weights go on and on
    with backend_process(short_path, "vllm", {"url": vllm_url}) as peer:
        peer.join()
        yield peer
    load_weights(vllm_url, TINY)


def greedy_of(peer: Peer, prompt: object, session: str) -> list[int]:
    wish = {"temperature": 0.0, "max_tokens": GREEDY, "session": session, "cache_salt": session}
    found: list[int] = peer.complete(prompt, **wish)[1]["token_ids"].tolist()
    return found


def test_tokens_after_the_switch_are_those_of_the_new_weights(peer: Peer, tmp_path: Path) -> None:
    old, new = (greedy(model, PROMPT, GREEDY, tmp_path) for model in (OTHER, TINY))
    assert until_end(old) != until_end(new)
    assert greedy_of(peer, PROMPT, "before") == until_end(old)
    ticket = peer.ask(PROMPT, max_tokens=600, seed=2, session="running", cache_salt="before")
    peer.until(lambda: ticket in peer.held, "it runs")
    update(peer, "keep", 7, str(TINY))
    message, arrays = peer.answer(ticket)
    assert isinstance(message, m.Generated)
    assert arrays["policy_spans"][:, 2].tolist() == [0, 7]
    assert greedy_of(peer, PROMPT, "after") == until_end(new)
    _, arrays = peer.complete(PROMPT, max_tokens=3, session="after")
    assert arrays["policy_spans"][:, 2].tolist() == [7]


def test_a_source_that_is_not_there_fails_the_step_and_keeps_the_weights(peer: Peer) -> None:
    before = greedy_of(peer, PROMPT, "one")
    assert not peer.step(m.Pause("u", "wait")).error
    answer = peer.step(m.UpdateWeights("u", 9, "/nowhere/at/all"))
    assert answer.error
    assert answer.policy_version == 0
    assert not peer.step(m.Resume("u")).error
    assert greedy_of(peer, PROMPT, "two") == before


def update(peer: Peer, mode: m.PauseMode, version: int, source: str) -> None:
    for step in (m.Pause("u", mode), m.UpdateWeights("u", version, source), m.Resume("u")):
        assert not peer.step(step).error


def until_end(ids: list[int]) -> list[int]:
    """Return what a server gives: it ends a completion at the model's end token."""
    end = tokens.load().end
    return ids[: ids.index(end) + 1] if end in ids else np.asarray(ids).tolist()
