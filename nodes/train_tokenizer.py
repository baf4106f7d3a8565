"""Train the tokenizer that comes with rollmq.

    python -m nodes.train_tokenizer [--out FILE]

Job: byte-level BPE over the standard library's own source and reasoning-gym's questions.
Does not know: who uses it.
Invariants: the same Python, reasoning-gym and seed give the same bytes. The result is committed,
because another Python would give another vocabulary.
"""

import argparse
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .tokens import FILE, SPECIAL_TOKENS

VOCABULARY = 4096
LIBRARY_FILES = 160
QUESTIONS = 200
SEED = 7
DATASETS = (
    "chain_sum",
    "basic_arithmetic",
    "gcd",
    "lcm",
    "prime_factorization",
    "number_sorting",
    "leg_counting",
    "spell_backward",
    "letter_counting",
    "base_conversion",
    "count_bits",
    "count_primes",
    "products",
    "simple_equations",
    "word_sorting",
    "word_sequence_reversal",
    "time_intervals",
    "syllogism",
    "needle_haystack",
    "calendar_arithmetic",
)


def corpus() -> Iterator[str]:
    """Yield texts: source files in order of name, then questions."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(library.glob("*.py"))[:LIBRARY_FILES]:
        yield file.read_text(errors="replace")
    from reasoning_gym import create_dataset  # noqa: PLC0415 - takes a second; tests train without

    for name in DATASETS:
        for entry in create_dataset(name, size=QUESTIONS, seed=SEED):
            yield entry["question"]


def train(texts: Iterator[str], size: int = VOCABULARY) -> Any:
    """Return a trained tokenizer with at most `size` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write the file, and return the exit status."""
    parser = argparse.ArgumentParser(prog="nodes.train_tokenizer", description=__doc__)
    parser.add_argument("--out", type=Path, default=FILE)
    file: Path = parser.parse_args(arguments).out
    file.parent.mkdir(parents=True, exist_ok=True)
    train(corpus()).save(str(file), pretty=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
