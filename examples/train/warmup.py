"""Make what training starts from: a tiny model that knows how sums are done, and often slips.

    python -m examples.train.warmup DIR [--steps N] [--slips SHARE] [--seed N]

Job: a model with random weights, trained on transcripts for a minute or two, saved for vLLM.
Does not know: rollmq's processes, or rewards.
Invariants: the same arguments on the same machine give the same weights. Only what a pupil writes
in a transcript counts.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from nodes import tokens
from nodes.agent import ChatmlTemplate, Message
from nodes.backends.tiny_conversations import SPEC, Part
from nodes.backends.tiny_model import make_model, save
from nodes.tasks.calculator import SYSTEM

from .batches import Row, collate
from .policy import token_logprobs
from .sums import SLIPS, draw, transcript

BATCH = 16
RATE = 3e-3
RISING_STEPS = 30
WHOLE_EVERY = 8  # batches with the system message, which is long and always the same
REPORT_EVERY = 50
SHOWN = 64  # right transcripts of which the chance is told


def train(model: Any, steps: int, slips: float, chance: random.Random) -> None:
    """Learn fresh transcripts in each step, a share of them with a slip."""
    template = ChatmlTemplate(tokens.load())
    with torch.no_grad():  # what is read can be said again at once: copying is learned sooner
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98))
    shown = [row(transcript(draw(chance), "", chance, template)) for _ in range(SHOWN)]
    system = len(template.opening([Message("system", SYSTEM)], [SPEC])) - len(
        template.opening([], [])
    )
    began = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / RISING_STEPS) * (1.0 - step / steps)
        made = []
        for _ in range(BATCH):
            slip = chance.choice(SLIPS) if chance.random() < slips else ""
            made.append(row(transcript(draw(chance), slip, chance, template)))
        if step % WHOLE_EVERY:
            made = [without(each, system) for each in made]
        loss = -token_logprobs(model, collate(made)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % REPORT_EVERY == 0:
            print(
                f"step {step + 1}: loss {loss.item():.3f}, a right transcript is sampled with "
                f"chance {chance_of(model, shown):.3f}, {time.monotonic() - began:.0f} s",
                flush=True,
            )


def row(parts: Sequence[Part]) -> Row:
    """Return a transcript as a row of tokens."""
    ids = np.concatenate([part for part, _ in parts]).astype(np.int64)
    written = np.concatenate([np.full(len(part), by_model) for part, by_model in parts])
    return Row(ids, written, np.zeros(len(ids), dtype=np.float32), 0.0, 0, len(ids))


def without(whole: Row, beginning: int) -> Row:
    """Return a row without its beginning: places are relative, so the rest means the same."""
    ids, sampled = whole.token_ids[beginning:], whole.sampled[beginning:]
    return Row(ids, sampled, whole.logprobs[beginning:], 0.0, 0, len(ids))


def chance_of(model: Any, shown: Sequence[Row]) -> float:
    """Return the mean probability of sampling what is written in these rows, word for word."""
    counts = [int(each.sampled.sum()) for each in shown]
    with torch.no_grad():
        found = token_logprobs(model, collate(shown)).split(counts)
    return float(np.mean([each.sum().exp().item() for each in found]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the model; return the exit status."""
    parser = argparse.ArgumentParser(prog="examples.train.warmup", description="make a tiny model")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--slips", type=float, default=0.65, help="share of transcripts with one")
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args(arguments)
    disable_progress_bar()
    vocabulary = tokens.load()
    model = make_model(vocabulary.size, vocabulary.end, chosen.seed)
    train(model, chosen.steps, chosen.slips, random.Random(chosen.seed))  # noqa: S311 - repeatable
    save(model, chosen.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
