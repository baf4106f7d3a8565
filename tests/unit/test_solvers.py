"""The simulator's solvers against reasoning-gym's own scorers."""

import pytest

from nodes.backends.simulator.solvers import evaluate, solve

reasoning_gym = pytest.importorskip("reasoning_gym")

UNANSWERABLE = "satisfies: 0 = 0"  # simple_equations asks this now and then
KNOWN = (
    "chain_sum",
    "decimal_chain_sum",
    "basic_arithmetic",
    "products",
    "gcd",
    "lcm",
    "prime_factorization",
    "number_sorting",
    "word_sorting",
    "word_sequence_reversal",
    "leg_counting",
    "spell_backward",
    "letter_counting",
    "base_conversion",
    "count_bits",
    "count_primes",
    "simple_equations",
)


@pytest.mark.parametrize("name", KNOWN)
def test_every_question_of_a_known_kind_is_answered_rightly(name: str) -> None:
    dataset = reasoning_gym.create_dataset(name, size=25, seed=11)
    scores = {
        entry["question"]: dataset.score_answer(solve(entry["question"]), entry)
        for entry in dataset
        if UNANSWERABLE not in entry["question"]
    }
    assert {question: reward for question, reward in scores.items() if reward != 1.0} == {}


@pytest.mark.parametrize("name", ["zebra_puzzles", "family_relationships", "dice"])
def test_a_question_of_an_unknown_kind_is_not_answered(name: str) -> None:
    assert solve(reasoning_gym.create_dataset(name, size=1, seed=1)[0]["question"]) is None


def test_arithmetic_is_exact_and_takes_nothing_else() -> None:
    assert evaluate("0.1 + 0.2 - 0.3") == 0
    for text in ("__import__('os')", "2 ** 9", "x + 1"):
        with pytest.raises(ValueError, match="not arithmetic"):
            evaluate(text)


def test_a_question_that_only_looks_like_a_known_one_is_not_answered() -> None:
    assert solve("Calculate 1 / 0.") is None
    assert solve("how many legs are there in total if you have 3 unicorns?") is None
