"""What the training example's policy does with numbers; runs in vLLM's environment, with torch.

python of_policy.py FOUND.json
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

from engine import Published
from examples.train.batches import Batch, Row, collate
from examples.train.policy import Policy, clipped_loss, load, token_logprobs
from examples.train.trainer import TokensChanged, Trainer
from nodes.backends.tiny_model import make_model

VOCABULARY, ROWS = 64, 6


def main() -> None:
    torch.set_num_threads(1)
    found = {
        "logprobs": logprobs(),
        "gradients": gradients(),
        "loss": loss(),
        "learning": learning(),
        "check": check(),
    }
    Path(sys.argv[1]).write_text(json.dumps(found))


def some_rows(chance: np.random.Generator, shared: int = 9) -> list[Row]:
    beginning = chance.integers(1, VOCABULARY, shared)
    made = []
    for number in range(ROWS):
        own = chance.integers(1, VOCABULARY, 5 + 3 * number)
        ids = np.concatenate([beginning, own]).astype(np.int64)
        sampled = np.zeros(len(ids), dtype=np.bool_)
        sampled[shared + 2 :: 2] = True
        logprobs = np.where(sampled, -1.0, 0.0).astype(np.float32)
        made.append(Row(ids, sampled, logprobs, float((-1) ** number), 0, len(ids)))
    return made


def plain(model: Any, rows: list[Row]) -> torch.Tensor:
    """Return the same as `token_logprobs`, row by row and from the start: the definition."""
    parts = []
    for row in rows:
        ids = torch.from_numpy(row.token_ids)[None]
        scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        every = scores.gather(1, ids[0, 1:, None])[:, 0]
        parts.append(every[torch.from_numpy(row.sampled[1:])])
    return torch.cat(parts)


def logprobs() -> dict[str, Any]:
    model, rows = make_model(VOCABULARY, 0, 1), some_rows(np.random.default_rng(1))
    batch = collate(rows)
    with torch.no_grad():
        return {
            "shared": len(batch.beginning),
            "found": token_logprobs(model, batch).tolist(),
            "wanted": plain(model, rows).tolist(),
        }


def gradients() -> float:
    """Return by how much gradients differ at most, relative to the largest."""
    model, rows = make_model(VOCABULARY, 0, 1), some_rows(np.random.default_rng(1))

    def of(total: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(total, list(model.parameters())))

    found, wanted = of(token_logprobs(model, collate(rows)).sum()), of(plain(model, rows).sum())
    most = max(float(each.abs().max()) for each in wanted)
    pairs = zip(found, wanted, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs) / most


def loss() -> dict[str, Any]:
    ratios, advantages = [1.0, 1.5, 0.5, 1.5, 0.5], [1.0, 1.0, 1.0, -1.0, -1.0]
    now = torch.tensor(ratios).log().requires_grad_()
    total, seen = clipped_loss(now, torch.zeros(5), torch.tensor(advantages))
    total.backward()
    return {
        "loss": total.item(),
        "gradient": now.grad.tolist() if now.grad is not None else [],
        "mean": seen.mean,
        "most": seen.most,
        "clipped": seen.clipped,
    }


def on_policy(policy: Policy, rows: list[Row], version: int) -> list[Row]:
    with torch.no_grad():
        now = token_logprobs(policy.model, collate(rows)).numpy()
    made, at = [], 0
    for row in rows:
        logprobs = np.zeros_like(row.logprobs)
        logprobs[row.sampled] = now[at : at + int(row.sampled.sum())]
        at += int(row.sampled.sum())
        made.append(Row(row.token_ids, row.sampled, logprobs, row.advantage, version, row.exact))
    return made


def learning() -> dict[str, Any]:
    policy = Policy(make_model(VOCABULARY, 0, 1), 1e-3)
    policy.remember(0)
    batch: Batch = collate(on_policy(policy, some_rows(np.random.default_rng(2)), 0))
    gained = torch.from_numpy(batch.advantages)
    with torch.no_grad():
        before = token_logprobs(policy.model, batch)
    first = policy.learn(batch)
    policy.learn(batch)
    with torch.no_grad():
        rise = token_logprobs(policy.model, batch) - before
    directory = Path(mkdtemp())
    policy.save(directory)
    with torch.no_grad():
        loaded = token_logprobs(load(directory), batch)
        now = token_logprobs(policy.model, batch)
    return {
        "first_ratio": [first.mean, first.most],
        "rise_where_better": float(rise[gained > 0].mean()),
        "rise_where_worse": float(rise[gained < 0].mean()),
        "former_version_differs": float(policy.differences(0, batch).max()),
        "saved_differs": float((loaded - now).abs().max()),
    }


class FakeClient:
    """A fleet of none, at version 4."""

    def backends(self) -> tuple[Any, ...]:
        return (type("State", (), {"policy_version": 4}),)

    def publish(self, version: int, source: str, timeout_s: float) -> Published:
        assert Path(source, "model.safetensors").exists()
        assert timeout_s > 0
        return Published(version, (), {})


def check() -> dict[str, Any]:
    weights = Path(mkdtemp())
    policy = Policy(make_model(VOCABULARY, 0, 1), 1e-3)
    trainer = Trainer(FakeClient(), policy, weights, 1)  # type: ignore[arg-type]
    versions = []
    for _ in range(3):
        trainer.publish()
        versions.append(trainer.version)
    rows = on_policy(policy, some_rows(np.random.default_rng(3)), 7)
    right = trainer.check(rows)
    return {
        "versions": versions,
        "kept": sorted(each.name for each in weights.iterdir()),
        "tokens": [right.tokens, int(sum(row.sampled.sum() for row in rows))],
        "most": right.most,
        "one token is another": refused(trainer, [*rows[:-1], another_token(rows[-1])]),
        "shifted by one": refused(trainer, [shifted(row) for row in rows]),
        "another version": refused(trainer, [of_version(row, 99) for row in rows]),
    }


def refused(trainer: Trainer, rows: list[Row]) -> str:
    try:
        trainer.check(rows)
    except TokensChanged as wrong:
        return str(wrong)
    return ""


def changed(row: Row, change: Callable[[Row], dict[str, Any]]) -> Row:
    fields = {name: getattr(row, name) for name in Row.__dataclass_fields__}
    return Row(**{**fields, **change(row)})


def another_token(row: Row) -> Row:
    ids = row.token_ids.copy()
    ids[-3] = ids[-3] % (VOCABULARY - 1) + 1
    return changed(row, lambda _: {"token_ids": ids})


def shifted(row: Row) -> Row:
    logprobs = row.logprobs.copy()
    logprobs[row.sampled] = np.roll(logprobs[row.sampled], 1)
    return changed(row, lambda _: {"logprobs": logprobs})


def of_version(row: Row, version: int) -> Row:
    return changed(row, lambda _: {"version": version})


if __name__ == "__main__":
    main()
