"""A real GRPOTrainer on rollmq's rollouts, on CPU; runs in the environment of `make trl`.

python train.py GIVEN.json FOUND.json

Writes down, for each step, what rollmq delivered, what TRL made of it, and how much of TRL's loss
reaches the place that predicts each token.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from engine import Client, Rollout, Task
from engine.adapters import trl

LEARNING_RATE = 5e-4
TENSORS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask")


class Watched(GRPOTrainer):
    """GRPOTrainer, and a look at each batch that it makes."""

    steps: list[dict[str, Any]]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = super()._generate_and_score_completions(inputs)
        whole = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)
        attention = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1)
        length = made["completion_ids"].shape[1]
        with torch.no_grad():
            again, *_ = self._get_per_token_logps_and_entropies(
                self.model, whole, attention, length
            )
        step = {name: made[name].tolist() for name in TENSORS}
        step["delivered"] = made["sampling_per_token_logps"].tolist()
        step["recomputed"] = again.tolist()
        step["advantages"] = made["advantages"].tolist()
        step["pulls"] = self._pulls(made).tolist()
        self.steps.append(step)
        return made

    def _pulls(self, made: dict[str, Any]) -> torch.Tensor:
        """Return float [rows, tokens]: the loss's pull where each completion token is predicted.

        The last hidden state of a token goes into the next one's prediction and nowhere else.
        """
        kept: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            output.last_hidden_state.retain_grad()
            kept.append(output.last_hidden_state)

        hook = self.model.model.register_forward_hook(keep)
        self._compute_loss(self.model, made).backward()
        hook.remove()
        self.model.zero_grad()
        assert kept[0].grad is not None
        start = made["prompt_ids"].shape[1] - 1
        return kept[0].grad.abs().sum(-1)[:, start:-1]


def told(rollout: Rollout) -> dict[str, Any]:
    t = rollout.trajectory
    about = {"reward": rollout.reward, "outcome": rollout.outcome, "task_id": rollout.task_id}
    if t is None:
        return about
    arrays = {"token_ids": t.token_ids, "loss_mask": t.loss_mask, "logprobs": t.logprobs}
    spans = {"policy_spans": t.policy_spans.tolist()}
    return about | spans | {name: array.tolist() for name, array in arrays.items()}


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    before = [each.detach().clone() for each in model.parameters()]
    tasks = {each["task_id"]: Task(**each) for each in given["tasks"]}
    batches: list[list[dict[str, Any]]] = []
    with Client(given["topology"], "trl") as client:
        asked = trl.Asked(client, tasks.__getitem__, retries=given["retries"])

        def source(prompts: Sequence[Any]) -> list[Rollout]:
            found = asked(prompts)
            batches.append([told(each) for each in found])
            return found

        weights = trl.Weights(client, given["weights"]) if given["weights"] else None
        trainer = Watched(
            model=model,
            args=config(given),
            processing_class=AutoTokenizer.from_pretrained(given["model"]),
            train_dataset=Dataset.from_list([{"prompt": name} for name in tasks]),
            reward_funcs=trl.reward,
            rollout_func=trl.rollout_func(source, weights),
        )
        trainer.steps = []
        trainer.train()
    pairs = zip(before, model.parameters(), strict=True)
    moved = max((old - new).abs().max().item() for old, new in pairs)
    found = {"batches": batches, "steps": trainer.steps, "moved": moved}
    found |= {"log": trainer.state.log_history, "replaced": asked.replaced}
    Path(sys.argv[2]).write_text(json.dumps(found))


def config(given: dict[str, Any]) -> GRPOConfig:
    return GRPOConfig(
        output_dir=given["output"],
        per_device_train_batch_size=given["groups"] * given["group_size"],
        num_generations=given["group_size"],
        max_steps=given["steps"],
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        beta=0.0,
        temperature=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=7,
    )


if __name__ == "__main__":
    main()
