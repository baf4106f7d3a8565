"""What verl's own code makes of a batch of rollmq's; runs in the environment of `make trl`.

python reference_verl.py ROLLOUTS.jsonl FOUND.json
"""

import itertools
import json
import sys
from pathlib import Path

import torch
from verl import DataProto, __version__
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
from verl.trainer.ppo.reward import extract_reward
from verl.utils.model import compute_position_id_with_mask

from engine.adapters import verl
from engine.output import read_rollouts


def main() -> None:
    alike = itertools.groupby(read_rollouts(Path(sys.argv[1])), key=lambda each: each.group_id)
    made = verl.batch(
        [list(group) for _, group in alike], prompt_length=5, response_length=7, pad_token_id=0
    )
    data = made.data_proto()
    halves = data.chunk(2)
    again = DataProto.concat(halves)
    scores, extra = extract_reward(data)
    advantages, _ = compute_grpo_outcome_advantage(
        token_level_rewards=scores,
        response_mask=data.batch["response_mask"],
        index=data.non_tensor_batch["uid"],
    )
    positions = compute_position_id_with_mask(data.batch["attention_mask"])
    names = sorted(data.batch.keys())
    found = {
        "version": __version__,
        "names": names,
        "dtypes": {name: str(data.batch[name].dtype) for name in names},
        "rows": len(data),
        "halves": [len(half) for half in halves],
        "same": all(torch.equal(data.batch[name], again.batch[name]) for name in names),
        "uid": again.non_tensor_batch["uid"].tolist(),
        "positions": torch.equal(positions, data.batch["position_ids"]),
        "scores": scores.sum(-1).tolist(),
        "exact": [str(each) for each in extra["exact"]],
        "advantages": advantages.tolist(),
        "mask": data.batch["response_mask"].tolist(),
        "left_out": made.left_out,
    }
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
