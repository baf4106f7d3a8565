"""A policy that learns, on one machine without a GPU: GRPO and DAPO through rollmq.

    make train

A tiny transformer does sums in several turns, each with a call of the calculator. Warmed up on
transcripts that often slip (they guess, stop early, do the wrong thing), it is right at times. Then
torch trains it on the CPU on what real vLLM samples, and new weights are published after every step
while the next batch is being sampled. Files, in the order in which data flows:

    topology.yaml    what is started: broker, stages, router, one vLLM server
    sums.py          problems, tasks, and how a pupil goes about them
    warmup.py        the model that training starts from
    sampling.py      rollouts through rollmq: batches of informative groups
    batches.py       rollouts into rows with advantages
    policy.py        the model: log-probabilities, the clipped loss, former versions
    trainer.py       a step: check, learn, publish
    report.py        lines, summary.json, the plot
    __main__.py      the run

Before a batch is learned from, the log-probability of every token that one version sampled alone is
computed again with that version's weights. A difference beyond a bound ends the run: token IDs and
log-probabilities arrive as they were sampled, or nothing is learned.
"""
