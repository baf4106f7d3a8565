"""Make a tiny language model that calls a calculator: small, but real enough to be served.

    python -m nodes.backends.tiny_model DIR [--seed N] [--steps N]

It needs torch and transformers, which the environment of vLLM has and rollmq's own does not.

Job: a Qwen3 of two layers with the tokenizer that comes with rollmq, trained for a minute on
synthetic conversations in the form of docs/agent.md, saved as a directory that vLLM and
transformers load without a network. With `--steps 0` the weights are random: another checkpoint.
Does not know: vLLM, or whether its arithmetic is right; what it learns is the form.
Invariants: the same seed, steps and machine give the same weights. Prompts and completions are
tokenized by nodes.tokens alone, exactly as in a rollout: marks are special tokens in what the
model writes and plain text in what it reads.
"""

import argparse
import json
import operator
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..agent.hermes import call_text, response_text, system_text
from ..agent.records import ToolCall, ToolSpec
from ..tokens import END, FILE, START, Ids, Tokens, load

SYSTEM = (
    "You solve problems step by step. Use the calculator for every step, one step in each turn. "
    "Then give nothing but the result between <answer> and </answer>."
)
CALCULATOR = ToolSpec(
    "calculator",
    "Evaluate an arithmetic expression of integers.",
    {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
        "additionalProperties": False,
    },
)
STEPS: tuple[tuple[str, str, int, Callable[[int, int], int]], ...] = (
    ("Add {}.", "+", 60, operator.add),
    ("Subtract {}.", "-", 60, operator.sub),
    ("Multiply by {}.", "*", 9, operator.mul),
)
MOST_STEPS = 4
CONTEXT_TOKENS = 4096
BATCH = 16
WHOLE_EVERY = 8  # batches with the system message, which is long and always the same
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
    """A conversation: token_ids int32 [n], written bool [n] (by the model), and where to start."""

    token_ids: Ids
    written: Any
    question_at: int


def conversation(chance: random.Random, steps: int) -> Iterator[tuple[str, str]]:
    """Yield (role, text): a question of so many steps, and its turns up to the answer."""
    value = chance.randint(1, 60)
    drawn = [chance.choice(STEPS) for _ in range(steps)]
    chosen = [(step, chance.randint(1, step[2])) for step in drawn]
    words = " ".join(step[0].format(number) for step, number in chosen)
    yield "system", system_text(SYSTEM, [CALCULATOR])
    yield "user", f"Start with {value}. {words} What is the result?"
    for (phrase, sign, _, apply), number in chosen:
        call = call_text(ToolCall("calculator", {"expression": f"{value} {sign} {number}"}))
        yield "assistant", f"<think>{phrase.format(number)}</think>{call}"
        value = apply(value, number)
        yield "user", response_text(str(value))
    yield "assistant", f"<answer>{value}</answer>"


def sample(tokens: Tokens, chance: random.Random, steps: int) -> Sample:
    """Return a conversation as a rollout would hold it."""
    turns = list(conversation(chance, steps))
    parts: list[tuple[Sequence[int] | Ids, bool]] = [(tokens.opening(turns[:2]), False)]
    for role, text in turns[2:]:
        if role == "assistant":
            parts.append((tokens.encode_marked(text + END), True))
        else:
            parts.append((tokens.next_turn(role, text), False))
    token_ids = np.concatenate([np.asarray(ids, dtype=np.int32) for ids, _ in parts])
    written = np.repeat([flag for _, flag in parts], [len(ids) for ids, _ in parts])
    question_at = len(tokens.opening(turns[:1])) - len(tokens.opening([]))
    return Sample(token_ids, written, question_at)


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
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).float()


def train(model: Any, tokens: Tokens, steps: int, seed: int) -> None:
    """Train on conversations; only what the model writes counts."""
    import torch  # noqa: PLC0415 - not in rollmq's own environment

    chance = random.Random(seed)  # noqa: S311 - has to be repeatable
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    began = time.monotonic()
    for step in range(steps):
        whole = step % WHOLE_EVERY == 0
        count, length = BATCH // 4 if whole else BATCH, chance.randint(1, MOST_STEPS)
        samples = [sample(tokens, chance, length) for _ in range(count)]
        loss = _loss(model, samples, whole=whole)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % REPORT_EVERY == 0:
            seconds = time.monotonic() - began
            print(f"step {step + 1}: loss {loss.item():.3f}, {seconds:.0f} s")  # noqa: T201


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS) * max(0.05, 1.0 - step / max(steps, 1))


def _loss(model: Any, samples: Sequence[Sample], *, whole: bool) -> Any:
    """Return the mean loss of what the model writes; logits are computed there alone."""
    import torch  # noqa: PLC0415 - not in rollmq's own environment

    ids, labels, places = _batch(samples, whole=whole)
    hidden = model.model(input_ids=ids, position_ids=places).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    counts = wanted != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[counts]), wanted[counts])


def _batch(samples: Sequence[Sample], *, whole: bool) -> tuple[Any, Any, Any]:
    import torch  # noqa: PLC0415 - not in rollmq's own environment

    starts = [0 if whole else each.question_at for each in samples]
    width = max(len(each.token_ids) - at for each, at in zip(samples, starts, strict=True))
    ids = np.zeros((len(samples), width), dtype=np.int64)
    labels = np.full((len(samples), width), IGNORED, dtype=np.int64)
    for row, (each, at) in enumerate(zip(samples, starts, strict=True)):
        length = len(each.token_ids) - at
        ids[row, :length] = each.token_ids[at:]
        labels[row, :length] = np.where(each.written[at:], each.token_ids[at:], IGNORED)
    places = np.arange(width)[None, :] + np.array(starts)[:, None]
    return torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(places)


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
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=600)
    chosen = parser.parse_args(arguments)
    import torch  # noqa: PLC0415 - not in rollmq's own environment

    torch.set_num_threads(2)
    tokens = load()
    model = make_model(tokens.size, tokens.end, chosen.seed)
    train(model, tokens, chosen.steps, chosen.seed)
    save(model, chosen.directory)
    print(f"{model.num_parameters()} parameters in {chosen.directory}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
