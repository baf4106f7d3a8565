"""How many rollouts a second the bus carries when the stages do nothing, and how promptly.

    python -m bench.broker --seconds 10 --rounds 3 --json

Measured: whole rollouts (three stages, 8,192 tokens, 256 in flight, one client) that reached the
client and were checked, for rollmq with `durability: power` and `none` and for every reference, all
in alternation on the same cores; then, for rollmq alone, the time from a free slot to the next
start, the time to cancel 1,000 running rollouts, memory with 10,000 under way, and CPU at rest.

Not measured: stages that work, several clients, a network. rollmq journals, leases and
acknowledges every rollout; no reference does any of it. What each reference is stands in its file.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from bench import bus, latency
from bench.measure import (
    RESULTS,
    ReferenceResult,
    interleave,
    json_line,
    result_table,
    table,
    write_results,
)
from bench.plots import plot_bars
from bench.references import NAMES, load
from bench.workload import IN_FLIGHT, TOKENS

RATIOS = {
    "ratio_http": ("rollmq_power", "fastapi_dicts"),
    "ratio_http_annotated": ("rollmq_power", "fastapi_annotated"),
    "ratio_http_tuned": ("rollmq_power", "fastapi_tuned"),
    "ratio_http_octets": ("rollmq_power", "fastapi_octets"),
    "ratio_ray": ("rollmq_power", "ray_actors"),
    "ratio_raw": ("rollmq_power", "raw_zmq"),
    "ratio_raw_in_memory": ("rollmq_none", "raw_zmq"),
}
Candidate = Callable[[float], ReferenceResult]


def main() -> None:
    """Run the bench and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measured window")
    parser.add_argument("--rounds", type=int, default=3, help="windows of each candidate")
    parser.add_argument("--json", action="store_true", help="no progress; one line of JSON last")
    options = parser.parse_args()
    rates = throughput(options.seconds, options.rounds, quiet=options.json)
    print(result_table(sorted(rates.values(), key=lambda result: -result.rollouts_per_s)))
    figures = {**ratios(rates), **promptness(options.seconds)}
    print(table(["figure", "value"], figures.items()))
    plot_bars(
        RESULTS / "broker.png",
        "Rollouts per second, three stages that do nothing, 8,192 tokens",
        {name: result.rollouts_per_s for name, result in rates.items()},
        unit="rollouts/s",
        highlight=("rollmq_power", "rollmq_none"),
    )
    write_results("broker", {**figures, "rates": rates})
    print(json_line(figures))


def throughput(seconds: float, rounds: int, *, quiet: bool) -> dict[str, ReferenceResult]:
    """Measure rollmq and every reference in alternation; return each one's median run."""
    candidates: dict[str, Candidate] = {
        f"rollmq_{durability}": partial(_bus, durability) for durability in ("power", "none")
    }
    candidates |= {name: partial(_reference, name) for name in NAMES}

    def report(name: str, result: ReferenceResult) -> None:
        if not quiet:
            print(f"{name:18} {result.rollouts_per_s:8.0f}/s  p99 {result.p99_ms:.1f} ms")

    return interleave(candidates, seconds, rounds, report=report)


def ratios(rates: dict[str, ReferenceResult]) -> dict[str, Any]:
    """Return rollmq's rate and its ratios to the references."""
    figures: dict[str, Any] = {
        "rollouts_per_s": rates["rollmq_power"].rollouts_per_s,
        "rollouts_per_s_in_memory": rates["rollmq_none"].rollouts_per_s,
    }
    for name, (ours, theirs) in RATIOS.items():
        figures[name] = rates[ours].rollouts_per_s / rates[theirs].rollouts_per_s
    return figures


def promptness(seconds: float) -> dict[str, Any]:
    """Measure what does not need a reference."""
    starts = latency.dispatch(max(8.0, seconds))
    many = latency.in_flight()
    stopped = latency.cancel()
    broker_percent, all_percent = latency.idle()
    return {
        "dispatch_p50_ms": starts.p50_ms,
        "dispatch_p99_ms": starts.p99_ms,
        "cancel_max_ms": stopped.stopped_max_ms,
        "cancel_receipts_ms": stopped.receipts_ms,
        "in_flight": many.rollouts,
        "bytes_per_rollout": many.bytes_per_rollout,
        "idle_cpu_percent": broker_percent,
        "idle_cpu_percent_all_nodes": all_percent,
    }


def _bus(durability: str, seconds: float) -> ReferenceResult:
    return bus.run(durability, seconds, IN_FLIGHT, TOKENS)


def _reference(name: str, seconds: float) -> ReferenceResult:
    return load(name)(seconds, IN_FLIGHT, TOKENS)


if __name__ == "__main__":
    main()
