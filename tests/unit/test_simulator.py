"""The simulator's parts: the step loop, the script and the prefix cache; no sockets, no clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import NodeFailed
from engine.records import Buffer
from engine.wire import array_buffer
from nodes import tokens
from nodes.backends.prefix_cache import PrefixCache
from nodes.backends.scripted import Script, Wish, guess, logprobs
from nodes.backends.simulator import Options, read_options, read_prompt
from nodes.backends.stepping import Batch, Sequence, StepTimes
from nodes.inference.messages import Generate

TIMES = StepTimes(base_s=1.0, prefill_token_s=0.01, decode_sequence_s=0.1)
VOCABULARY = tokens.load()
QUESTION = "Find the Least Common Multiple (LCM) of these numbers: 76, 70"
PROMPT = VOCABULARY.opening([("user", QUESTION)])


def sequence(ticket: str, prefill: int = 100, length: int = 3, now: float = 0.0) -> Sequence[None]:
    return Sequence(ticket, prefill, length, now, None)


def wish(session: str = "s", seed: int | None = None, **changes: object) -> Wish:
    fields = {"max_tokens": 1000, "temperature": 1.0, "stop_token_ids": (VOCABULARY.end,)}
    return Wish(session, seed, **(fields | changes))  # type: ignore[arg-type]


def test_a_lone_sequence_takes_its_prefill_and_one_step_a_token() -> None:
    batch = Batch[None](TIMES)
    batch.add(sequence("a"))
    assert batch.advance(4.19) == []
    [ended] = batch.advance(4.21)
    assert (ended.started_at, ended.first_at) == (0.0, 2.0)
    assert ended.ended_at == pytest.approx(4.2)
    assert (batch.due_at, batch.steps, batch.tokens) == (None, 3, 3)


def test_sequences_share_steps_and_a_late_one_joins_at_the_next() -> None:
    batch = Batch[None](TIMES)
    batch.add(sequence("a", length=10))
    batch.advance(0.5)
    batch.add(sequence("b", length=1, now=0.5))
    [ended] = batch.advance(4.2)
    assert (ended.ticket, ended.started_at) == ("b", 2.0)
    assert ended.ended_at == pytest.approx(2.0 + 1.0 + 1.0 + 0.1)


def test_time_is_made_up_when_the_process_was_away() -> None:
    batch = Batch[None](TIMES)
    batch.add(sequence("a", prefill=0, length=5))
    assert [each.ended_at for each in batch.advance(100.0)] == [pytest.approx(5.4)]


def test_an_aborted_sequence_never_ends_and_leaves_the_loop_idle() -> None:
    batch = Batch[None](TIMES)
    batch.add(sequence("a"))
    batch.abort("a")
    assert batch.advance(100.0) == []
    assert (len(batch), batch.due_at) == (0, None)


def test_a_cleared_batch_starts_afresh() -> None:
    batch = Batch[None](TIMES)
    batch.add(sequence("a"))
    batch.clear()
    batch.add(sequence("b", prefill=0, length=1, now=50.0))
    assert [each.ended_at for each in batch.advance(60.0)] == [51.0]


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50), st.integers(1, 8)), max_size=20))
def test_every_sequence_ends_once_in_order_and_after_it_arrived(
    arrivals: list[tuple[float, int, int]],
) -> None:
    batch, now, ended = Batch[None](TIMES), 0.0, []
    for number, (pause, prefill, length) in enumerate(arrivals):
        now += pause
        ended += batch.advance(now)
        batch.add(sequence(str(number), prefill, length, now))
    ended += batch.advance(now + 10_000)
    assert sorted(each.ticket for each in ended) == sorted(map(str, range(len(arrivals))))
    for each in ended:
        assert each.emitted == each.length
        assert each.arrived_at <= each.started_at < each.first_at <= each.ended_at
    assert [each.ended_at for each in ended] == sorted(each.ended_at for each in ended)


def test_a_script_repeats_itself_and_differs_by_session_and_seed() -> None:
    script = Script(VOCABULARY, accuracy=0.5)
    wishes = [wish(), wish(), wish("other"), wish(seed=1)]
    texts = [VOCABULARY.decode(script.complete(PROMPT, each).token_ids) for each in wishes]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


@pytest.mark.parametrize(
    ("accuracy", "least", "most"), [(0.0, 0, 0), (0.6, 90, 150), (1.0, 200, 200)]
)
def test_a_script_is_right_as_often_as_it_is_asked_to_be(
    accuracy: float, least: int, most: int
) -> None:
    script = Script(VOCABULARY, accuracy)
    completions = [script.complete(PROMPT, wish(f"s{n}")) for n in range(200)]
    texts = [VOCABULARY.decode(each.token_ids) for each in completions]
    assert least <= sum("<answer>2660</answer>" in text for text in texts) <= most
    assert all(30 <= len(each.token_ids) <= 200 for each in completions)
    assert {each.finish_reason for each in completions} == {"stop"}


def test_a_completion_over_its_limit_is_cut_and_says_so() -> None:
    completion = Script(VOCABULARY, 1.0).complete(PROMPT, wish(max_tokens=10))
    assert (len(completion.token_ids), len(completion.logprobs)) == (10, 10)
    assert completion.finish_reason == "length"


def test_a_second_turn_answers_the_first_turns_question() -> None:
    script = Script(VOCABULARY, 1.0)
    first = script.complete(PROMPT, wish()).token_ids
    prompt = np.concatenate([PROMPT, first, VOCABULARY.next_turn("user", "Check your answer.")])
    assert "<answer>2660</answer>" in VOCABULARY.decode(script.complete(prompt, wish()).token_ids)


@given(st.floats(0, 5), st.integers(0, 300), st.integers(0, 2**63))
def test_logprobs_are_finite_and_at_most_zero(temperature: float, length: int, seed: int) -> None:
    found = logprobs(length, temperature, seed)
    assert (found.dtype, found.shape) == (np.float32, (length,))
    assert np.isfinite(found).all()
    assert (found <= 0).all()
    assert (found > -9999).all()


@given(
    st.sampled_from(["17", "-3", "0", "2, 3", "['1', '2']", "5 x 7", "nus", "3.25"]), st.randoms()
)
def test_a_wrong_guess_differs_from_the_answer(right: str, chance: object) -> None:
    assert guess(right, chance, is_right=False) != right  # type: ignore[arg-type]
    assert guess(right, chance, is_right=True) == right  # type: ignore[arg-type]


def test_the_prefix_cache_holds_whole_blocks_of_what_was_computed() -> None:
    cache = PrefixCache(capacity_tokens=1024, block_tokens=16)
    tokens_ = np.arange(100, dtype=np.int32)
    assert cache.match(tokens_) == 0
    cache.store(tokens_)
    assert cache.match(tokens_) == 96
    assert cache.match(tokens_[:96]) == 80
    assert cache.match(tokens_, salt=1) == 0
    assert cache.match(tokens_[1:]) == 0


def test_the_prefix_cache_forgets_what_was_used_least_recently() -> None:
    cache = PrefixCache(capacity_tokens=64, block_tokens=16)
    old, new = np.zeros(33, dtype=np.int32), np.ones(33, dtype=np.int32)
    cache.store(old)
    cache.store(new)
    assert cache.match(old) == 32
    cache.store(np.full(33, 2, dtype=np.int32))
    assert (cache.match(old), cache.match(new)) == (32, 0)
    assert len(cache) == 64


def test_options_of_the_topology_are_checked() -> None:
    assert read_options({"accuracy": 1, "speed": 2.5}) == Options(accuracy=1.0, speed=2.5)
    with pytest.raises(NodeFailed, match="simulator options: sped: is not a field here"):
        read_options({"sped": 2})


def test_a_prompt_is_read_as_it_was_sent() -> None:
    buffer, frame = array_buffer("token_ids", PROMPT)
    asked = Generate("r", "s", 1, (buffer,))
    assert read_prompt(asked, [frame], VOCABULARY.size).tolist() == PROMPT.tolist()


@pytest.mark.parametrize(
    ("buffer", "frame", "why"),
    [
        (Buffer("token_ids", "json", (2,)), b"[]", "expected int32"),
        (Buffer("token_ids", "json", (1,)), b"{", "expected int32"),
        (Buffer("token_ids", "json", (0,)), b"", "expected int32"),
        (Buffer("token_ids", "int64", (1,)), bytes(8), "expected int32"),
        (Buffer("token_ids", "int32", ()), bytes(4), "expected int32"),
        (Buffer("token_ids", "int32", (1, 1)), bytes(4), "expected int32"),
        (Buffer("token_ids", "int32", (0,)), b"", "at least one token"),
        (Buffer("token_ids", "int32", (1,)), b"\xff" * 4, "token IDs go from 0"),
        (Buffer("token_ids", "int32", (1,)), b"\xff\xff\xff\x7f", "token IDs go from 0"),
    ],
)
def test_a_prompt_that_is_none_is_refused(buffer: Buffer, frame: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_prompt(Generate("r", "s", 1, (buffer,)), [frame], VOCABULARY.size)


def test_a_request_for_no_token_is_refused() -> None:
    buffer, frame = array_buffer("token_ids", PROMPT)
    with pytest.raises(ValueError, match="max_tokens over 0"):
        read_prompt(Generate("r", "s", 0, (buffer,)), [frame], VOCABULARY.size)
