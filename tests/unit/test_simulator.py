"""The simulator's parts: scripts, options, faults and requests; no sockets, no clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import NodeFailed
from nodes import tokens
from nodes.backends.simulator.faults import Fault, Faults
from nodes.backends.simulator.options import Options, read_options
from nodes.backends.simulator.process import policy_spans
from nodes.backends.simulator.scripted import FillerScript, TextScript, Wish, guess, logprobs

VOCABULARY = tokens.load()
QUESTION = "Find the Least Common Multiple (LCM) of these numbers: 76, 70"
PROMPT = VOCABULARY.opening([("user", QUESTION)])


def wish(session: str = "s", seed: int | None = None, **changes: object) -> Wish:
    fields = {"max_tokens": 1000, "temperature": 1.0, "stop_token_ids": (VOCABULARY.end,)}
    return Wish(session, seed, **(fields | changes))  # type: ignore[arg-type]


def test_a_script_repeats_itself_and_differs_by_session_and_seed() -> None:
    script = TextScript(VOCABULARY, accuracy=0.5)
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
    script = TextScript(VOCABULARY, accuracy)
    completions = [script.complete(PROMPT, wish(f"s{n}")) for n in range(200)]
    texts = [VOCABULARY.decode(each.token_ids) for each in completions]
    assert least <= sum("<answer>2660</answer>" in text for text in texts) <= most
    assert all(30 <= len(each.token_ids) <= 200 for each in completions)
    assert {each.finish_reason for each in completions} == {"stop"}


def test_a_completion_over_its_limit_is_cut_and_says_so() -> None:
    completion = TextScript(VOCABULARY, 1.0).complete(PROMPT, wish(max_tokens=10))
    assert (len(completion.token_ids), len(completion.logprobs)) == (10, 10)
    assert completion.finish_reason == "length"


def test_a_second_turn_answers_the_first_turns_question() -> None:
    script = TextScript(VOCABULARY, 1.0)
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


def test_options_of_the_topology_are_checked() -> None:
    assert read_options({"accuracy": 1, "speed": 2.5}) == Options(accuracy=1.0, speed=2.5)
    with pytest.raises(NodeFailed, match="simulator options: sped: is not a field here"):
        read_options({"sped": 2})
    with pytest.raises(NodeFailed, match="could never fit into the cache"):
        read_options({"cache_tokens": 4096})


def test_options_say_what_goes_wrong_and_when() -> None:
    options = read_options({"faults": [{"kind": "die", "after": 100}]})
    assert options.faults == (Fault("die", after=100),)
    with pytest.raises(NodeFailed, match="faults"):
        read_options({"faults": [{"kind": "explode"}]})


def test_faults_hit_the_requests_that_they_name() -> None:
    faults = Faults([Fault("full", after=2, times=2), Fault("error", after=3, times=0)])
    kinds = [found and found.kind for found in (faults.next() for _ in range(6))]
    assert kinds == [None, None, "full", "full", "error", "error"]


def test_faults_by_chance_repeat_themselves() -> None:
    def hits(seed: int) -> list[bool]:
        faults = Faults([Fault("slow", times=0, chance=0.2)], seed)
        return [faults.next() is not None for _ in range(500)]

    assert hits(1) == hits(1) != hits(2)
    assert 60 < sum(hits(1)) < 140


def test_filler_is_as_long_as_asked_and_never_stops_early() -> None:
    completion = FillerScript(VOCABULARY).complete(PROMPT, wish(max_tokens=77))
    assert (len(completion.token_ids), completion.finish_reason) == (77, "length")
    assert VOCABULARY.end not in completion.token_ids


@pytest.mark.parametrize(
    ("marks", "length", "spans"),
    [
        ([(0, 3)], 5, [[0, 5, 3]]),
        ([(0, 3), (2, 4)], 5, [[0, 2, 3], [2, 5, 4]]),
        ([(0, 3), (5, 4)], 5, [[0, 5, 3]]),
    ],
)
def test_spans_cover_the_completion(
    marks: list[tuple[int, int]], length: int, spans: list[list[int]]
) -> None:
    found = policy_spans(marks, length)
    assert (found.dtype, found.tolist()) == (np.int32, spans)
