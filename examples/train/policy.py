"""The policy as the trainer holds it: a torch model, its loss, and its former versions.

Job: log-probabilities of sampled tokens, the clipped loss, saving what is published.
Does not know: rollmq.
Invariants: what a version's weights say of a row is what they said when it sampled. No step is
taken on a loss that is not finite.
"""

from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from .batches import Batch

CLIP_LOW, CLIP_HIGH = 0.2, 0.28  # DAPO, arXiv 2503.14476: room for what is still improbable
GRADIENT = 1.0  # the largest norm of a step's gradient
KEPT = 6  # former versions


@dataclass(frozen=True, slots=True)
class Ratios:
    """How far the policy is from the one that sampled, over the tokens of an update."""

    mean: float
    most: float
    clipped: float


def load(directory: Path) -> Any:
    """Return the model of a directory, float32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def token_logprobs(model: Any, batch: Batch) -> torch.Tensor:
    """Return float32 [n]: the log-probability of each token that counts, row by row.

    The beginning that all rows share is computed once; gradients reach it from every row. No mask
    is needed for what pads: it stands after every token of its row.
    """
    cache = None
    if len(batch.beginning):
        beginning = torch.from_numpy(batch.beginning)[None]
        cache = model.model(input_ids=beginning, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(batch.token_ids))
    ids, counts = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.counts)[:, 1:]
    hidden = model.model(input_ids=ids[:, :-1], past_key_values=cache).last_hidden_state
    scores = model.lm_head(hidden[counts]).log_softmax(-1)
    found: torch.Tensor = scores.gather(1, ids[:, 1:][counts][:, None])[:, 0]
    return found


def clipped_loss(
    logprobs: torch.Tensor, sampled: torch.Tensor, advantages: torch.Tensor
) -> tuple[torch.Tensor, Ratios]:
    """Return the loss, a mean over tokens, and the importance ratios.

    logprobs, sampled: float32 [n]; now, and of the policy that sampled. advantages: float32 [n].
    Every token weighs the same, however long its rollout is; there is no KL term.
    Source: DAPO, arXiv 2503.14476, equation 8.
    """
    ratio = (logprobs - sampled).exp()
    held = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    loss = -torch.minimum(ratio * advantages, held * advantages).mean()
    seen = ratio.detach()
    clipped = (held.detach() != seen).float().mean()
    return loss, Ratios(float(seen.mean()), float(seen.max()), float(clipped))


class Policy:
    """The weights that learn, and copies of those that were published."""

    def __init__(self, model: Any, rate: float) -> None:
        self.model = model
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        self._published: OrderedDict[int, Any] = OrderedDict()

    def learn(self, batch: Batch) -> Ratios:
        """Take one step.

        Raises: FloatingPointError if the loss is not finite.
        """
        now = token_logprobs(self.model, batch)
        sampled, gained = torch.from_numpy(batch.logprobs), torch.from_numpy(batch.advantages)
        loss, ratios = clipped_loss(now, sampled, gained)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return ratios

    def save(self, directory: Path) -> None:
        """Write the weights to a directory that vLLM loads."""
        self.model.save_pretrained(directory)

    def remember(self, version: int) -> None:
        """Keep a copy of the weights as they are, under this version."""
        self._published[version] = deepcopy(self.model)
        while len(self._published) > KEPT:
            self._published.popitem(last=False)

    def knows(self, version: int) -> bool:
        """Return whether a version's weights are still here."""
        return version in self._published

    def differences(self, version: int, batch: Batch) -> torch.Tensor:
        """Return float32 [n]: between log-probabilities as delivered and as that version finds."""
        with torch.no_grad():
            found = token_logprobs(self._published[version], batch)
        return (found - torch.from_numpy(batch.logprobs)).abs()
