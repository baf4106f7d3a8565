"""Train a tiny policy through rollmq; see the package's docstring.

    python -m examples.train [--out DIR] [--steps N] [--gain G]

Job: start the topology, evaluate, train, evaluate again, report.
Does not know: how a step is done.
Invariants: however it ends, the nodes are drained and what was measured is written. Exit status 0:
trained; 1: the reward rose by less than asked; 2: it could not go on; 130: interrupted.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from engine import Client, RollmqError, Rollout, Topology, load

from . import report, sums
from .policy import Policy
from .policy import load as load_model
from .sampling import batches, discard, evaluate, mean_reward
from .service import running
from .trainer import BOUND, TokensChanged, Trainer

TOPOLOGY = Path(__file__).parent / "topology.yaml"
MODEL = Path(".cache/models/pupil")
THREADS = 1  # the other core samples


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; return the exit status."""
    chosen = _parser().parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name in ("steps.jsonl", "summary.json"):
        (chosen.out / name).unlink(missing_ok=True)
    torch.set_num_threads(THREADS)
    disable_progress_bar()
    torch.manual_seed(chosen.seed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    topology, policy = load(chosen.topology), Policy(load_model(chosen.model), chosen.rate)
    try:
        print("starting rollmq and vLLM", flush=True)
        with running(topology, chosen.out / "rollmq.log"):
            return _train(chosen, topology, policy, began)
    except (RollmqError, TokensChanged, TimeoutError, FloatingPointError) as wrong:
        print(f"{type(wrong).__name__}: {wrong}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="examples.train", description="train a tiny policy")
    parser.add_argument("--out", type=Path, default=Path("out-train"))
    parser.add_argument("--topology", type=Path, default=TOPOLOGY)
    parser.add_argument("--model", type=Path, default=MODEL, help="to start from")
    parser.add_argument("--steps", type=int, default=60, help="at most")
    parser.add_argument("--until", type=float, default=0.97, help="a step's reward that ends it")
    parser.add_argument("--groups", type=int, default=16, help="informative ones, for each step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-4, help="of learning")
    parser.add_argument("--problems", type=int, default=128, help="evaluated before and after")
    parser.add_argument("--gain", type=float, default=0.0, help="fail if the reward rises by less")
    parser.add_argument("--seed", type=int, default=7)
    return parser


def _train(chosen: argparse.Namespace, topology: Topology, policy: Policy, began: float) -> int:
    steps: list[report.Step] = []
    after: list[Rollout] = []
    with Client(topology.path, "trainer") as client:
        discard(client)
        trainer = Trainer(client, policy, topology.run_dir / "weights", chosen.seed)
        trainer.publish()
        before = evaluate(topology.path, "before", chosen.problems)
        print(f"reward before: {mean_reward(before):.3f}", flush=True)
        try:
            _steps(chosen, client, trainer, steps)
            discard(client)
            after = evaluate(topology.path, "after", chosen.problems)
        finally:
            first, last = mean_reward(before), mean_reward(after) if after else None
            minutes = (time.monotonic() - began) / 60
            summary = report.summarize(steps, first, last, BOUND, minutes, finished=bool(after))
            report.write_summary(chosen.out, summary)
    report.write_trajectories(chosen.out, before, after)
    report.plot(steps, chosen.out / "train.png")
    gain = mean_reward(after) - first
    print(f"reward {first:.3f} before, {first + gain:.3f} after, in {minutes:.1f} minutes")
    if gain < chosen.gain:
        print(f"the reward rose by less than {chosen.gain:g}", file=sys.stderr)
        return 1
    return 0


def _steps(
    chosen: argparse.Namespace, client: Client, trainer: Trainer, steps: list[report.Step]
) -> None:
    """Train for the steps that were asked for; `steps` has what was done, whatever happens."""
    tasks = sums.tasks(f"train-{time.time_ns()}", chosen.seed)
    with closing(batches(client, tasks, chosen.groups, chosen.group_size)) as source:
        for number, sampled in enumerate(islice(source, chosen.steps), start=1):
            steps.append(trainer.step(number, sampled))
            report.append_step(chosen.out, steps[-1])
            print(steps[-1].line(), flush=True)
            if steps[-1].reward >= chosen.until:
                break


if __name__ == "__main__":
    sys.exit(main())
