"""Make a tiny language model that calls tools: small, but real enough to be served.

    python -m nodes.backends.tiny_model DIR --conversations FILE [--demonstrations FILE]
      [--seed N] [--steps N]

It needs torch and transformers, which the environment of vLLM has and rollmq's own does not; so it
imports nothing of rollmq but the tokenizer. `tiny_conversations` and `tiny_demonstrations` make the
files.

Job: a Qwen3 of two layers with the tokenizer that comes with rollmq, trained for a minute or two,
saved as a directory that vLLM and transformers load without a network. Without conversations its
weights are random.
Does not know: vLLM, or whether its arithmetic is right. Of conversations it learns the form;
demonstrations, of which there are few, it learns by heart.
Invariants: the same seed, steps and machine give the same weights. Only what the model writes in a
conversation counts.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..tokens import END, FILE, START, load

CONTEXT_TOKENS = 4096
BATCH, SHOWN = 16, 16  # conversations, and demonstrations, in a batch; a quarter if whole
WHOLE_EVERY = 8  # batches with the system message, which is long and always the same
SHOWN_EVERY = 2  # steps with one of demonstrations after them; every other of these is whole
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 30
IGNORED = -100  # the label of what the model reads
REPORT_EVERY = 100
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A conversation: token_ids int32 [n], written uint8 [n] (by the model).

    `start` is the place of its first token, and `question_at` that behind the system message.
    """

    token_ids: npt.NDArray[np.int32]
    written: npt.NDArray[np.uint8]
    question_at: int
    start: int = 0

    def cut(self) -> "Sample":
        """Return the conversation without its system message; every token stays in its place."""
        at = self.question_at
        return Sample(self.token_ids[at:], self.written[at:], at, at)


class Conversations:
    """What `tiny_conversations` or `tiny_demonstrations` wrote, in order of length."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as found:
            ids, written, ends = found["token_ids"], found["written"], found["ends"]
            places = np.broadcast_to(found["question_at"], len(ends)).tolist()
        cuts = zip([0, *ends[:-1]], ends, places, strict=True)
        samples = [Sample(ids[start:end], written[start:end], at) for start, end, at in cuts]
        self.samples = sorted(samples, key=lambda each: len(each.token_ids))

    def batch(self, chance: np.random.Generator, *, is_whole: bool) -> list[Sample]:
        """Return neighbours: of about the same length, so that little is padded."""
        count = min(BATCH // 4 if is_whole else BATCH, len(self.samples))
        at = int(chance.integers(0, len(self.samples) - count + 1))
        drawn = self.samples[at : at + count]
        return drawn if is_whole else [each.cut() for each in drawn]

    def some(self, chance: np.random.Generator, *, is_whole: bool) -> list[Sample]:
        """Return some at random, whatever their lengths: where there are few."""
        places = chance.permutation(len(self.samples))[: SHOWN // 4 if is_whole else SHOWN]
        drawn = [self.samples[at] for at in places]
        return drawn if is_whole else [each.cut() for each in drawn]


def make_model(vocabulary: int, end: int, seed: int) -> Any:
    """Return a Qwen3 of two layers with random weights, float32."""
    import torch  # noqa: PLC0415 - not in rollmq's own environment
    from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: PLC0415 - the same

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,  # vLLM 0.32 reloads a tied head wrongly
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).float()


def train(
    model: Any,
    conversations: Conversations,
    demonstrations: Conversations | None,
    steps: int,
    seed: int,
) -> None:
    """Train on conversations; only what the model writes counts."""
    import torch  # noqa: PLC0415 - not in rollmq's own environment

    chance = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    began = time.monotonic()

    def learn(samples: list[Sample]) -> float:
        loss = _loss(model, samples)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    shown = 0.0
    for step in range(steps):
        told = learn(conversations.batch(chance, is_whole=step % WHOLE_EVERY == 0))
        if demonstrations is not None and step % SHOWN_EVERY == 0:
            shown = learn(demonstrations.some(chance, is_whole=step % (2 * SHOWN_EVERY) == 0))
        schedule.step()
        if (step + 1) % REPORT_EVERY == 0:
            losses = f"loss {told:.3f}, of demonstrations {shown:.3f}"
            print(f"step {step + 1}: {losses}, {time.monotonic() - began:.0f} s")  # noqa: T201


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS) * max(0.05, 1.0 - step / max(steps, 1))


def _loss(model: Any, samples: Sequence[Sample]) -> Any:
    """Return the mean loss of what the model writes; logits are computed there alone."""
    import torch  # noqa: PLC0415 - not in rollmq's own environment

    ids, labels, places = (torch.from_numpy(array) for array in _batch(samples))
    hidden = model.model(input_ids=ids, position_ids=places).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    counts = wanted != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[counts]), wanted[counts])


def _batch(samples: Sequence[Sample]) -> tuple[npt.NDArray[np.int64], ...]:
    """Return ids, labels and places, each int64 [samples, longest]."""
    width = max(len(each.token_ids) for each in samples)
    ids = np.zeros((len(samples), width), dtype=np.int64)
    labels = np.full((len(samples), width), IGNORED, dtype=np.int64)
    for row, each in enumerate(samples):
        length = len(each.token_ids)
        ids[row, :length] = each.token_ids
        labels[row, :length] = np.where(each.written, each.token_ids, IGNORED)
    starts = np.array([[each.start] for each in samples])
    return ids, labels, starts + np.arange(width)


def save(model: Any, directory: Path, file: Path = FILE) -> None:
    """Write the directory that vLLM loads: weights, tokenizer, template, generation settings."""
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - needs vLLM's environment

    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        eos_token=END,
        pad_token="<|endoftext|>",  # noqa: S106 - a mark, not a secret
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(directory)
    settings = {"eos_token_id": model.config.eos_token_id, "pad_token_id": 0}
    (directory / "generation_config.json").write_text(json.dumps(settings) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make, train and save the model; return the exit status."""
    parser = argparse.ArgumentParser(prog="nodes.backends.tiny_model", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--conversations", type=Path, help="what to train on")
    parser.add_argument("--demonstrations", type=Path, help="what to learn by heart beside them")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=400)
    chosen = parser.parse_args(arguments)
    import torch  # noqa: PLC0415 - not in rollmq's own environment

    torch.set_num_threads(2)
    tokens = load()
    model = make_model(tokens.size, tokens.end, chosen.seed)
    if chosen.conversations is not None:
        by_heart = chosen.demonstrations and Conversations(chosen.demonstrations)
        train(model, Conversations(chosen.conversations), by_heart, chosen.steps, chosen.seed)
    save(model, chosen.directory)
    print(f"{model.num_parameters()} parameters in {chosen.directory}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
