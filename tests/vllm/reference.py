"""What transformers says of token IDs; runs in vLLM's environment, knows nothing of rollmq.

python reference.py GIVEN.json FOUND.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()
    found = {"rows": [logprobs(model, row, given["temperature"]) for row in given.get("rows", [])]}
    if "greedy" in given:
        found["greedy"] = greedy(model, given["greedy"]["prompt"], given["greedy"]["count"])
    Path(sys.argv[2]).write_text(json.dumps(found))


def logprobs(model: Any, row: list[int], temperature: float) -> list[float]:
    ids = torch.tensor([row])
    scores = (model(input_ids=ids).logits[0, :-1] / temperature).log_softmax(-1)
    found: list[float] = scores.gather(1, ids[0, 1:, None])[:, 0].tolist()
    return found


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


if __name__ == "__main__":
    main()
