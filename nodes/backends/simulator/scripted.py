"""What the simulator says: text written from the prompt's tokens alone, with log-probabilities.

    text     says what a demonstration of the conversation says (`demonstrations`); else
             solves the question if `solvers` can, and answers it rightly with probability
             `accuracy`; where the system message offers a calculator, it calls it (`tool_calls`)
    filler   writes max_tokens tokens that mean nothing, for benches that decide all lengths

Job: write completions. Does not know: time, batches or sockets. No model is behind this.
Invariants: the same prompt, seed and session give the same completion. Log-probabilities are those
of a softmax over invented logits: finite, at most 0, one a token.
"""

import random
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...tasks import FinishReason
from ...tokens import END, Tokens
from .demonstrations import Demonstrations
from .solvers import solve
from .tool_calls import next_turn

CANDIDATES = 32  # tokens that compete at each position
LEAD = 3.0  # by how much the sampled token's logit leads on average
COLDEST = 0.05  # temperatures below are greedy
THOUGHTS = (
    "First I read the question carefully and note what is given.",
    "I should be careful with the format that is asked for.",
    "Let me go through it one step at a time.",
    "I check the intermediate result before I go on.",
    "That looks consistent with what was given.",
    "Wait, let me check this once more from the beginning.",
    "The numbers are small enough to do this directly.",
    "Nothing else in the question changes the result.",
    "Doing it the other way round leads to the same place.",
)
_TURN = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """What will be sampled: token_ids int32 [n], logprobs float32 [n]."""

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Wish:
    """What of a request the script depends on, beside its prompt."""

    session: str
    seed: int | None
    max_tokens: int
    temperature: float
    stop_token_ids: tuple[int, ...]


class Script(Protocol):
    """Whoever decides what is sampled."""

    def complete(self, prompt: npt.NDArray[np.int32], wish: Wish) -> Completion:
        """Return the completion of `prompt`, int32 [n]."""
        ...


def script(
    name: str,
    tokens: Tokens,
    accuracy: float = 1.0,
    seed: int = 0,
    demonstrations: Demonstrations | None = None,
) -> Script:
    """Return a script by its name.

    Raises: KeyError if there is none of that name.
    """
    scripts: dict[str, Script] = {
        "text": TextScript(tokens, accuracy, seed, demonstrations),
        "filler": FillerScript(tokens, seed),
    }
    return scripts[name]


class FillerScript:
    """Write as many tokens as are asked for."""

    def __init__(self, tokens: Tokens, seed: int = 0) -> None:
        self._seed = seed
        self._end = tokens.end
        self._size = tokens.size

    def complete(self, prompt: npt.NDArray[np.int32], wish: Wish) -> Completion:
        """Return a completion of `wish.max_tokens` tokens, none of which ends it."""
        entropy = entropy_of(prompt, wish, self._seed)
        stops = np.array([self._end, *wish.stop_token_ids])
        usable = np.setdiff1d(np.arange(self._size), stops)
        token_ids = np.random.default_rng(entropy).choice(usable, wish.max_tokens)
        found = logprobs(wish.max_tokens, wish.temperature, entropy)
        return Completion(token_ids.astype(np.int32), found, "length")


class TextScript:
    """Write text; right with probability `accuracy`."""

    def __init__(
        self,
        tokens: Tokens,
        accuracy: float,
        seed: int = 0,
        demonstrations: Demonstrations | None = None,
    ) -> None:
        self._tokens = tokens
        self._demonstrations = demonstrations or Demonstrations(())
        self._accuracy = accuracy
        self._seed = seed

    def complete(self, prompt: npt.NDArray[np.int32], wish: Wish) -> Completion:
        """Return the completion of `prompt`, int32 [n]."""
        entropy = entropy_of(prompt, wish, self._seed)
        chance = random.Random(entropy)  # noqa: S311 - has to be repeatable
        text = self._text(self._tokens.decode(prompt), chance)
        ids = self._tokens.encode_marked(text + END)
        stop = {*wish.stop_token_ids, self._tokens.end}
        length = 1 + next(place for place, number in enumerate(ids) if number in stop)
        reason: FinishReason = "stop" if length <= wish.max_tokens else "length"
        token_ids = np.array(ids[: min(length, wish.max_tokens)], dtype=np.int32)
        return Completion(token_ids, logprobs(len(token_ids), wish.temperature, entropy), reason)

    def _text(self, prompt: str, chance: random.Random) -> str:
        is_right = chance.random() < self._accuracy
        turn = self._demonstrations.next_turn(prompt, is_right=is_right)
        turn = turn or next_turn(prompt, chance, is_right=is_right)
        if turn is not None:
            return turn
        questions = _TURN.findall(prompt)
        right = next((found for found in map(solve, reversed(questions)) if found), None)
        answer = guess(right, chance, is_right=is_right)
        thoughts = chance.sample(THOUGHTS, chance.randint(2, len(THOUGHTS)))
        return f"<think>{' '.join(thoughts)}</think>\n<answer>{answer}</answer>"


def entropy_of(prompt: npt.NDArray[np.int32], wish: Wish, seed: int) -> int:
    """Return a number that the prompt, the session and both seeds decide."""
    digest = blake2b(prompt.tobytes(), digest_size=8)
    digest.update(repr((seed, wish.seed, wish.session)).encode())
    return int.from_bytes(digest.digest(), "little")


def guess(right: str | None, chance: random.Random, *, is_right: bool) -> str:
    """Return the right answer, or a plausible one that differs from it."""
    if right is None:
        return str(chance.randint(0, 100))
    if is_right:
        return right
    if re.fullmatch(r"-?\d+", right):
        return str(int(right) + chance.choice((-10, -2, -1, 1, 2, 10)))
    parts = right.split(", ")
    if len(set(parts)) > 1:
        place = chance.choice([at for at, part in enumerate(parts[1:]) if part != parts[at]])
        parts[place], parts[place + 1] = parts[place + 1], parts[place]
        return ", ".join(parts)
    return right[:-1] + chance.choice([mark for mark in "0123456789" if mark != right[-1:]])


def logprobs(length: int, temperature: float, entropy: int) -> npt.NDArray[np.float32]:
    """Return float32 [length]: the sampled tokens' log-softmax over invented logits."""
    logits = np.random.default_rng(entropy).normal(0.0, 1.5, (length, CANDIDATES))
    logits[:, 0] += LEAD
    if temperature < COLDEST:
        logits[:, 0] = logits.max(axis=1, initial=0.0)
    logits /= max(temperature, COLDEST)
    most = logits.max(axis=1, keepdims=True, initial=-np.inf)
    total = most[:, 0] + np.log(np.exp(logits - most).sum(axis=1))
    found: npt.NDArray[np.float32] = np.minimum(logits[:, 0] - total, 0.0).astype(np.float32)
    return found
