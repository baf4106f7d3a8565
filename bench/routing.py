"""What the choice of a backend does to rollouts per second, from little load to far too much.

    python -m bench.routing --json
    python -m bench.routing --vllm-python PYTHON --model DIR --json

Measured, first part: rollouts/s, prefix hit rate, preemptions and time per turn of each policy at
each number of open sessions, on four simulated servers whose scheduler and cache behave as vLLM's
do (tests/unit/test_vllm_traces.py), in simulated time, under the router's own placement. "Bounded"
is the same with `router.sessions` at what the caches hold; a turn's time has the wait for room in
it. Sessions have the recorded shape (bench/sessions.py). Step times are of the order of one H100
with an 8B model, and are not a measurement of one.

Measured, second part: the same comparison on two real vLLM servers on this machine, if asked for.

Not measured: the network, the router's own time (bench.tokens), weight updates, failures.
"""

import argparse
from collections.abc import Callable, Iterable
from itertools import islice, product
from statistics import median
from typing import Any

from bench.measure import RESULTS, json_line, table, write_results
from bench.plots import plot_lines
from bench.routing_references import ConsistentHashing
from bench.sessions import Shape, sessions
from bench.simulated_fleet import Figures, Fleet, Run
from nodes.inference.policies import Policy, named

FLEET = Fleet(backends=4, cache_tokens=262_144)
SHAPE = Shape()
LOADS = (16, 32, 64, 80, 96, 128, 192)
OURS, BASE, BOUNDED = "sticky-least-loaded", "round-robin", "sticky-least-loaded, bounded"
POLICIES = (OURS, BOUNDED, "consistent-hashing", "least-loaded", "random", BASE)
SEED = 1


def main() -> None:
    """Run the bench and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--warmup", type=float, default=100.0, help="simulated seconds before")
    parser.add_argument("--seconds", type=float, default=200.0, help="simulated seconds measured")
    parser.add_argument("--loads", type=int, nargs="+", default=LOADS, help="open sessions")
    parser.add_argument("--vllm-python", help="a Python that has vLLM, for the second part")
    parser.add_argument("--model", help="directory of the model that vLLM serves")
    parser.add_argument("--vllm-seconds", type=float, default=60.0, help="of each window")
    parser.add_argument("--rounds", type=int, default=3, help="windows of each policy with vLLM")
    parser.add_argument("--json", action="store_true", help="no progress; one line of JSON last")
    options = parser.parse_args()
    runs = simulate(options.loads, options.warmup, options.seconds, quiet=options.json)
    print(run_table(runs))
    figures = {**ratios(runs), **vllm_figures(options)}
    print(table(["figure", "value"], figures.items()))
    plot(runs)
    write_results("routing", {**figures, "runs": runs})
    print(json_line(figures))


def simulate(
    loads: Iterable[int], warmup_s: float, window_s: float, *, quiet: bool
) -> list[Figures]:
    """Run each policy at each load, from an empty fleet and with the same sessions."""
    runs = []
    for load, name in product(loads, POLICIES):
        bound = capacity_sessions() // FLEET.backends if name == BOUNDED else 0
        run = Run(name, make_policy(name), FLEET, sessions(SHAPE, SEED), load, bound)
        runs.append(run.figures(warmup_s, window_s))
        if not quiet:
            print(f"{load:4} {name:30} {runs[-1].rollouts_per_s:.2f}/s", flush=True)
    return runs


def make_policy(name: str) -> Policy:
    """Return a fresh policy of the router, or a reference."""
    made: dict[str, Callable[[], Policy]] = {
        "consistent-hashing": ConsistentHashing,
        BOUNDED: lambda: named(OURS),
    }
    return made.get(name, lambda: named(name, SEED))()


def capacity_sessions() -> int:
    """Return how many open sessions the caches of the fleet hold, at the mean of their lengths."""
    tokens = turns = 0
    for session in islice(sessions(SHAPE, SEED), 2000):
        length = session.system_tokens + session.task_tokens
        for turn in session.turns:
            length += turn.added_tokens + turn.answer_tokens
            tokens += length
            turns += 1
    return int(FLEET.backends * FLEET.cache_tokens / (tokens / turns))


def ratios(runs: list[Figures]) -> dict[str, Any]:
    """Return our rates over those of round-robin, and what is left of our best rate at capacity."""
    rates = {(run.policy, run.load): run.rollouts_per_s for run in runs}
    loads = sorted({run.load for run in runs})
    ours = [rates[OURS, load] / rates[BASE, load] for load in loads]
    bounded = [rates[BOUNDED, load] / rates[BASE, load] for load in loads]
    within = [load for load in loads if load <= capacity_sessions()] or loads[:1]
    return {
        "capacity_sessions": capacity_sessions(),
        "ratio_round_robin_best": max(ours),
        "ratio_round_robin_worst": min(ours),
        "ratio_round_robin_best_bounded": max(bounded),
        "ratio_round_robin_worst_bounded": min(bounded),
        "at_capacity_of_best": rates[OURS, within[-1]] / max(rates[OURS, load] for load in within),
        "overload_of_best": rates[OURS, loads[-1]] / max(rates[OURS, load] for load in loads),
        "overload_of_best_bounded": rates[BOUNDED, loads[-1]]
        / max(rates[BOUNDED, load] for load in loads),
    }


def vllm_figures(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of two real servers; without a vLLM they are null, and that is said."""
    names = ("vllm_ratio_round_robin", "vllm_hit_rate", "vllm_hit_rate_round_robin")
    if not options.vllm_python or not options.model:
        print("no --vllm-python and --model: not compared on real vLLM servers")
        return dict.fromkeys(names)
    from bench.vllm_pair import compare  # noqa: PLC0415 - needs aiohttp, which the rest does not

    found = compare(
        options.vllm_python, options.model, options.vllm_seconds, options.rounds, (OURS, BASE)
    )
    rates = {name: median(rate for rate, _ in each) for name, each in found.items()}
    hits = {name: median(hit for _, hit in each) for name, each in found.items()}
    ratio = rates[OURS] / rates[BASE]
    return {
        **dict(zip(names, (ratio, hits[OURS], hits[BASE]), strict=True)),
        "vllm_rollouts_per_s": rates[OURS],
        "vllm_rollouts_per_s_round_robin": rates[BASE],
        "vllm_windows": found,
    }


def run_table(runs: list[Figures]) -> str:
    """Return the table of all runs."""
    headings = ["load, policy", "rollouts/s", "hits %", "preempted", "turn p50 s", "turn p99 s"]
    rows = [
        [
            f"{run.load:4} {run.policy}",
            run.rollouts_per_s,
            100 * run.hit_rate,
            run.preemptions,
            run.turn_p50_s,
            run.turn_p99_s,
        ]
        for run in runs
    ]
    return table(headings, rows)


def plot(runs: list[Figures]) -> None:
    """Draw rollouts/s over the load, a line for each policy."""
    lines = {
        policy: [(run.load, run.rollouts_per_s) for run in runs if run.policy == policy]
        for policy in POLICIES
    }
    plot_lines(
        RESULTS / "routing.png",
        "Rollouts per second by open sessions, four simulated servers",
        lines,
        x_label="open sessions",
        y_label="rollouts/s",
        highlight=(OURS, BOUNDED),
        mark=("the caches are full", float(capacity_sessions())),
    )


if __name__ == "__main__":
    main()
