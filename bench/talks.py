"""The task kind of `bench.failover`: a few turns with the policy, and nothing else."""

import numpy as np

from nodes import tokens
from nodes.tasks import Context, Output, Sampling

QUESTION = "Calculate 12 + 30."


async def run(context: Context) -> Output:
    """Ask for `turns` completions, each after all that was said before."""
    vocabulary = tokens.load()
    sampling = Sampling(max_tokens=64, stop_token_ids=(vocabulary.end,))
    prompt = vocabulary.opening([("user", QUESTION)])
    session = f"{context.rollout_id}.{context.attempt}"
    for _ in range(context.task.payload["turns"]):
        made = await context.model.generate(session, prompt, sampling)
        context.spent(turns=1, tokens=len(made.token_ids))
        prompt = np.concatenate([prompt, made.token_ids, vocabulary.next_turn("user", "Again.")])
    return Output(reward=1.0, final=True)
