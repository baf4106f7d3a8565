"""What every kind of backend promises its router, on a process of each kind.

The same tests run on the simulator and on a real vLLM server; the latter only with `-m vllm`.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes import tokens
from nodes.agent import ChatmlTemplate, Message
from nodes.backends.tiny_conversations import SPEC
from nodes.inference import messages as m
from nodes.tasks.calculator import SYSTEM

from ..fake_router import Peer, backend_process
from ..vllm_kit import CONTEXT_TOKENS, OTHER, TINY, load_weights

pytestmark = pytest.mark.timeout(900)  # the first vllm test starts a server

KINDS = ("simulator", pytest.param("vllm", marks=pytest.mark.vllm))
VOCABULARY = tokens.load()
QUESTION = "Start with 12. Add 30. Multiply by 3. Subtract 14. What is the result?"
ASKED = [Message("system", SYSTEM), Message("user", QUESTION)]
PROMPT = ChatmlTemplate(VOCABULARY).opening(ASKED, [SPEC])
END = VOCABULARY.end
LONG: dict[str, Any] = {"max_tokens": 1000, "seed": 1}  # with random weights, ends seldom come
Open = Callable[[], Peer]


def options_of(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    if kind == "vllm":
        return {"url": request.getfixturevalue("random_url")}
    return {"speed": 0.25, "context_tokens": CONTEXT_TOKENS}


@pytest.fixture(scope="module")
def random_url(vllm_url: str) -> Iterator[str]:
    """Return the URL of a server with random weights, which hardly ever end a turn."""
    load_weights(vllm_url, OTHER)
    yield vllm_url
    load_weights(vllm_url, TINY)


@pytest.fixture(params=KINDS, scope="module")
def open_peer(request: pytest.FixtureRequest) -> Iterator[Open]:
    options = options_of(request.param, request)
    with ExitStack() as stack:

        def opened() -> Peer:
            directory = Path(tempfile.mkdtemp(prefix="rq", dir="/tmp"))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            return stack.enter_context(backend_process(directory, request.param, options))

        yield opened


@pytest.fixture(scope="module")
def peer(open_peer: Open) -> Peer:
    """Return a backend that has joined; shared, so tests use sessions and salts of their own."""
    peer = open_peer()
    peer.join()
    return peer


def running(peer: Peer, **wish: Any) -> str:
    """Ask for something long, and return its ticket once the backend works on it."""
    ticket = peer.ask(PROMPT, **{**LONG, **wish})
    peer.until(lambda: ticket in peer.held or peer.has_answer(ticket), f"{ticket} in work")
    assert not peer.has_answer(ticket)
    return ticket


def test_a_completion_is_aligned_and_ends_with_its_stop_token(peer: Peer) -> None:
    wish = {"max_tokens": 40, "temperature": 1.0, "seed": 3, "session": "stop"}
    ids = peer.complete(PROMPT, **wish)[1]["token_ids"].tolist()
    stop = ids[7]
    message, arrays = peer.complete(PROMPT, stop_token_ids=(stop,), **wish)
    assert (message.finish_reason, message.backend) == ("stop", "b-0")
    assert arrays["token_ids"].tolist() == ids[: ids.index(stop) + 1]


def test_a_completion_is_cut_at_its_length(peer: Peer) -> None:
    message, arrays = peer.complete(PROMPT, max_tokens=3, stop_token_ids=(END,))
    assert message.finish_reason == "length"
    assert len(arrays["token_ids"]) == 3


def test_a_prompt_and_its_completion_fit_into_the_context(peer: Peer) -> None:
    prompt = np.resize(PROMPT, CONTEXT_TOKENS - 5)
    message, arrays = peer.complete(prompt, **LONG)
    assert message.finish_reason in {"length", "stop"}
    assert len(arrays["token_ids"]) <= 5


@pytest.mark.parametrize("length", [CONTEXT_TOKENS, CONTEXT_TOKENS + 1, 3 * CONTEXT_TOKENS])
def test_a_prompt_that_leaves_no_room_is_too_long(peer: Peer, length: int) -> None:
    message, _ = peer.answer(peer.ask(np.resize(PROMPT, length)))
    assert isinstance(message, m.GenerateFailed)
    assert (message.code, message.retry) == ("too_long", False)


@pytest.mark.parametrize("odd", [VOCABULARY.size, 2**31 - 1, -1])
def test_a_token_that_the_model_lacks_is_invalid(peer: Peer, odd: int) -> None:
    message, _ = peer.answer(peer.ask([*PROMPT[:8].tolist(), odd]))
    assert isinstance(message, m.GenerateFailed)
    assert (message.code, message.retry) == ("invalid", False)


def test_the_same_seed_gives_the_same_tokens_and_another_one_others(peer: Peer) -> None:
    wish = {"session": "seeds", "max_tokens": 120, "temperature": 1.0, "cache_salt": "seeds"}
    found = [tuple(peer.complete(PROMPT, seed=n, **wish)[1]["token_ids"]) for n in (1, 1, 2, 3, 4)]
    assert found[0] == found[1]
    assert len(set(found)) > 1


def test_the_second_turn_finds_the_first_in_the_cache(peer: Peer) -> None:
    wish = {"session": "turns", "cache_salt": "turns", "stop_token_ids": (END,), "max_tokens": 80}
    first, arrays = peer.complete(PROMPT, **wish)
    assert first.cached_tokens == 0
    asked = VOCABULARY.next_turn("user", "Go on, please.")
    prompt = np.concatenate([PROMPT, arrays["token_ids"], asked])
    second, _ = peer.complete(prompt, **wish)
    assert len(PROMPT) // 2 < second.cached_tokens < len(prompt)


def test_another_salt_finds_nothing_in_the_cache(peer: Peer) -> None:
    for salt, is_cached in (("a", False), ("a", True), ("b", False)):
        found, _ = peer.complete(PROMPT, max_tokens=2, cache_salt=salt, session=f"salt-{salt}")
        assert bool(found.cached_tokens) == is_cached, salt


def test_many_requests_at_once_are_all_answered(peer: Peer) -> None:
    tickets = [peer.ask(PROMPT, session=f"m{n}", seed=n, max_tokens=40) for n in range(16)]
    for ticket in tickets:
        message, _ = peer.answer(ticket)
        assert isinstance(message, m.Generated)


def test_an_aborted_request_is_answered_with_the_tokens_that_it_cost(peer: Peer) -> None:
    spent = [abort_running(peer) for _ in range(4)]  # one may be stopped before its first token
    assert all(0 <= tokens < LONG["max_tokens"] for tokens in spent)
    assert max(spent) > 0


def abort_running(peer: Peer) -> int:
    ticket = running(peer)
    began = time.monotonic()
    peer.tell(m.Abort((ticket,)))
    message, _ = peer.answer(ticket)
    assert isinstance(message, m.Aborted), message
    assert time.monotonic() - began < 5
    assert message not in peer.quiet(2)
    assert ticket not in peer.held
    return message.tokens


def test_an_abort_right_behind_its_request_stops_it_too(peer: Peer) -> None:
    ticket = peer.ask(PROMPT, **LONG)
    peer.tell(m.Abort((ticket,)))
    message, _ = peer.answer(ticket)
    assert isinstance(message, m.Aborted)
    assert message.tokens < LONG["max_tokens"]


def test_an_abort_of_what_is_not_there_harms_nobody(peer: Peer) -> None:
    peer.tell(m.Abort(("t-unknown",)))
    peer.complete(PROMPT, max_tokens=2)


def test_heartbeats_name_what_is_in_work_and_count(peer: Peer) -> None:
    tickets = {running(peer, session=f"h{n}") for n in range(2)}
    assert tickets <= set(peer.held)
    before = peer.figures["tokens"]
    for ticket in tickets:
        peer.tell(m.Abort((ticket,)))
        peer.answer(ticket)
    peer.complete(PROMPT, max_tokens=5)
    peer.until(lambda: peer.figures["tokens"] >= before + 5, "tokens counted")
    names = {"running", "waiting", "kv_use", "preemptions", "prefix_queries", "prefix_hits"}
    peer.until(lambda: names <= set(peer.figures), f"figures {sorted(names)}")


@pytest.mark.parametrize("mode", ["keep", "wait", "abort"])
def test_an_update_shows_in_the_spans_and_its_steps_can_be_repeated(
    peer: Peer, mode: m.PauseMode
) -> None:
    before = int(peer.complete(PROMPT, max_tokens=2)[1]["policy_spans"][0][2])
    ticket = running(peer, max_tokens=400, session=f"u-{mode}")
    steps = (
        m.Pause(f"u-{mode}", mode),
        m.UpdateWeights(f"u-{mode}", before + 3, ""),
        m.Resume(f"u-{mode}"),
    )
    for step, version in zip(steps, (before, before + 3, before + 3), strict=True):
        for _ in range(2):
            answer = peer.step(step)
            assert (answer.error, answer.policy_version) == ("", version)
    message, arrays = peer.answer(ticket)
    versions = arrays["policy_spans"][:, 2].tolist()
    assert (message.finish_reason == "abort") == (mode == "abort")
    assert versions[0] == before
    if mode == "keep":
        assert versions == [before, before + 3]
    assert peer.complete(PROMPT, max_tokens=2)[1]["policy_spans"].tolist() == [[0, 2, before + 3]]


def test_weights_do_not_change_without_a_pause(peer: Peer) -> None:
    before = int(peer.complete(PROMPT, max_tokens=2)[1]["policy_spans"][0][2])
    answer = peer.step(m.UpdateWeights("u-unpaused", before + 9, ""))
    assert answer.error
    assert answer.policy_version == before


def test_a_request_that_comes_during_a_pause_is_answered_after_it(peer: Peer) -> None:
    assert not peer.step(m.Pause("u-late", "keep")).error
    ticket = peer.ask(PROMPT, max_tokens=2)
    peer.until(lambda: ticket in peer.held, "it is held")
    peer.quiet(2)
    assert ticket in peer.held
    assert not peer.step(m.Resume("u-late")).error
    assert isinstance(peer.answer(ticket)[0], m.Generated)


def test_a_backend_says_hello_until_it_is_welcome_and_then_beats(open_peer: Open) -> None:
    peer = open_peer()
    first, second = peer.wait(m.BackendHello), peer.wait(m.BackendHello)
    assert first == second
    assert (first.node, first.capacity, first.policy_version >= 0) == ("b-0", 16, True)
    peer.tell(m.BackendWelcome("fake-router"))
    peer.quiet(2)


def test_who_is_not_known_drops_everything_and_says_hello(open_peer: Open) -> None:
    peer = open_peer()
    peer.join()
    ticket = running(peer)
    peer.tell(m.BackendHelloAgain("fake-router"))
    peer.join()
    peer.until(lambda: not peer.held, "nothing is held")
    assert not [seen for seen in peer.quiet(3) if getattr(seen, "request_id", "") == ticket]
    peer.complete(PROMPT, max_tokens=2)


def test_asked_to_stop_a_backend_drains_and_says_goodbye(open_peer: Open) -> None:
    peer = open_peer()
    peer.join()
    ticket = running(peer, max_tokens=300)
    peer.terminate()
    peer.wait(m.BackendDrain)
    message, _ = peer.answer(ticket)
    assert isinstance(message, m.Generated)
    peer.wait(m.BackendGoodbye)
    assert peer.process.wait(30) == 0
