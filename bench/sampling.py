"""How soon N informative groups are there: dynamic sampling against batch by batch.

    python -m bench.sampling --json

Both sides run on the same topology with the same rollouts (bench/sampling_kind.py): 64 run slots,
groups of 8, batches of 16 informative groups, durations with a long tail.

  cancel    client.sample: prompts are asked for as slots free, and a batch's rest is cancelled
  carry     the same, but what is open goes on into the next batch
  batch xK  what trainers do without it: submit K x 16 prompts, wait for all of them, keep what is
            informative, and do it again until 16 are there; the surplus is dropped

Measured: seconds a batch, over several batches, and tokens sampled for nothing, a batch: those of
dropped, cancelled and surplus groups. `ratio_batch_by_batch` is the time of the fastest K over that
of the faster of our two, where a third of the prompts is informative; `ratio_cancel` and
`ratio_carry` are each of ours against the fastest K.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.bus import ROOT
from bench.measure import json_line, table, write_results
from engine import Client, Rollout, Task, load
from engine.sampling import Over
from engine.supervisor import Supervisor

GROUPS, SIZE, SLOTS = 16, 8, 64
BATCHES = 4
MEDIAN_S, SIGMA = 0.15, 1.0
SHARES = {"1": 1.0, "2/3": 2 / 3, "1/3": 1 / 3, "1/6": 1 / 6}
HEADLINE = "1/3"
FACTORS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over the batches of one way to sample."""

    seconds: float
    wasted_tokens: float
    used_tokens: float


@contextmanager
def running() -> Iterator[Client]:
    """Run the topology with a client for the length of the block."""
    stages = [
        {"name": "init", "slots": 8},
        {"name": "run", "slots": SLOTS, "ready": 2 * SLOTS, "timeout_s": 60},
        {"name": "eval", "slots": 8, "ready": SLOTS},
    ]
    settings = {"version": 1, "run_dir": "r", "log_level": "warning", "stages": stages}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(prefix="rq") as folder:
        path = Path(folder) / "t.yaml"
        path.write_text(json.dumps(settings), encoding="utf-8")
        with Supervisor(load(path)) as supervisor, Client(path, window=1024) as client:
            supervisor.wait_ready(60)
            yield client


def prompts(name: str, share: float, sigma: float) -> Iterator[Task]:
    """Return prompts without an end, the same for each name."""
    for number in itertools.count():
        payload = {
            "seed": f"{name} {number}",
            "share": share,
            "median_s": MEDIAN_S,
            "sigma": sigma,
        }
        yield Task(f"{name}-{number}", "bench.sampling_kind", payload)


def dynamic(client: Client, share: float, sigma: float, over: Over) -> Figures:
    """Sample batches as rollmq does."""
    began = time.perf_counter()
    reports = []
    batches = client.sample(prompts("p", share, sigma), GROUPS, SIZE, over=over)
    for batch in itertools.islice(batches, BATCHES):
        assert len(batch.groups) == GROUPS, batch
        reports.append(batch)
    seconds = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined]
    wasted = sum(batch.report.wasted_tokens for batch in reports)
    used = sum(batch.report.kept.tokens for batch in reports)
    return Figures(seconds / BATCHES, wasted / BATCHES, used / BATCHES)


def batch_by_batch(client: Client, share: float, sigma: float, factor: int) -> Figures:
    """Sample batches as trainers do that wait for whole batches."""
    source = prompts("p", share, sigma)
    began = time.perf_counter()
    wasted = used = 0
    for _ in range(BATCHES):
        kept: list[list[Rollout]] = []
        while len(kept) < GROUPS:
            client.submit_all(itertools.islice(source, factor * GROUPS), SIZE)
            for group in client.groups():
                if len({rollout.reward for rollout in group}) > 1 and len(kept) < GROUPS:
                    kept.append(group)
                    used += tokens_of(group)
                else:
                    wasted += tokens_of(group)
    return Figures((time.perf_counter() - began) / BATCHES, wasted / BATCHES, used / BATCHES)


def tokens_of(group: list[Rollout]) -> int:
    """Return the tokens that a group's rollouts sampled."""
    return sum(int(rollout.data["run"]["tokens"]) for rollout in group)


def compare(client: Client, share: float, sigma: float) -> dict[str, Figures]:
    """Return each way's figures for one share of informative prompts."""
    found = {
        "cancel": dynamic(client, share, sigma, "cancel"),
        "carry": dynamic(client, share, sigma, "carry"),
    }
    for factor in FACTORS:
        found[f"batch x{factor}"] = batch_by_batch(client, share, sigma, factor)
    return found


def fastest(found: dict[str, Figures], *, ours: bool) -> Figures:
    """Return the fastest of our ways, or of the references."""
    sides = [figures for name, figures in found.items() if name.startswith("batch") != ours]
    return min(sides, key=lambda figures: figures.seconds)


def main() -> None:
    """Print a table, and with --json one line at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sigma", type=float, default=SIGMA, help="of the durations' logarithm")
    parser.add_argument("--shares", nargs="*", choices=[*SHARES], default=[*SHARES])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows, by_share = [], {}
    with running() as client:
        dynamic(client, 1.0, options.sigma, "cancel")  # warm-up
        for name in options.shares:
            found = by_share[name] = compare(client, SHARES[name], options.sigma)
            best = fastest(found, ours=False)
            for way, figures in found.items():
                cells = (f"{figures.seconds:.2f}", f"{best.seconds / figures.seconds:.2f}")
                wasted = f"{figures.wasted_tokens / 1000:.1f}"
                rows.append((name, way, *cells, wasted))
    heads = ("informative", "way", "s a batch", "times the reference", "wasted, 1000 tokens")
    print(table(heads, rows))
    values = _values(by_share)
    write_results("sampling", values)
    if options.json:
        print(json_line(values))


def _values(by_share: dict[str, dict[str, Figures]]) -> dict[str, object]:
    headline = by_share[HEADLINE if HEADLINE in by_share else next(iter(by_share))]
    best, ours = fastest(headline, ours=False), fastest(headline, ours=True)
    return {
        "ratio_batch_by_batch": best.seconds / ours.seconds,
        "ratio_cancel": best.seconds / headline["cancel"].seconds,
        "ratio_carry": best.seconds / headline["carry"].seconds,
        "wasted_tokens": ours.wasted_tokens,
        "wasted_tokens_cancel": headline["cancel"].wasted_tokens,
        "wasted_tokens_batch_by_batch": best.wasted_tokens,
        "ratios": {
            share: fastest(found, ours=False).seconds / fastest(found, ours=True).seconds
            for share, found in by_share.items()
        },
        "seconds_a_batch": {
            share: {way: figures.seconds for way, figures in found.items()}
            for share, found in by_share.items()
        },
    }


if __name__ == "__main__":
    main()
