"""Write the transcripts that the policy is warmed up on.

    python -m examples.train.transcripts FILE [--count N] [--seed N] [--slips SHARE]

Job: transcripts of sums, in the file that `nodes.backends.tiny_model` learns from.
Does not know: models.
Invariants: the same arguments give the same file.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from nodes import tokens
from nodes.agent import ChatmlTemplate
from nodes.backends.tiny_conversations import Part, save

from .sums import SLIPS, draw, transcript


def transcripts(count: int, seed: int, slips: float) -> Iterator[list[Part]]:
    """Yield `count` transcripts, a share of them with a slip."""
    chance = random.Random(seed)  # noqa: S311 - has to be repeatable
    template = ChatmlTemplate(tokens.load())
    for _ in range(count):
        slip = chance.choice(SLIPS) if chance.random() < slips else ""
        yield transcript(draw(chance), slip, chance, template)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file; return the exit status."""
    parser = argparse.ArgumentParser(prog="examples.train.transcripts", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--slips", type=float, default=0.7, help="share of transcripts with one")
    chosen = parser.parse_args(arguments)
    total = save(chosen.file, transcripts(chosen.count, chosen.seed, chosen.slips))
    print(f"{chosen.count} transcripts, {total} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
