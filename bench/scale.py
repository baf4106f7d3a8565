"""How throughput grows with hosts, how soon 2,000 rollouts at once are served, and CURVE's cost.

    python -m bench.scale --json
    python -m bench.scale --quick            # a look in some minutes; not a measurement

Rollouts wait as agents do: a run lasts as recorded runs last (log-normal, the slowest tenth takes
40 % of the time), init a twentieth of its mean, eval a tenth; each leaves 8,192 tokens that the
client checks. A host has its own processes for the three stages, and its own address; all links are
TCP on this machine, and everything is journalled (`durability: power`). Candidates alternate, every
second round backwards; each figure is of the run in the middle.

  hosts   1, 2, 4 and 8 hosts of 32 run slots, kept full: `efficiency_N` is the rate over N times
          that of one host
  pace    8 hosts, runs shorter and shorter until the processors are full: how busy the slots stay,
          and at how many cores; Ray beside it. `ratio_ray` is of the rates at the last pace
  many    2,000 rollouts in their run stage at once on one broker, on 2 hosts and, for what the
          simulated hosts' 48 processes cost, on 8; and the same with Ray: the time from a stage's
          end to the next one's begin while slots are free, rollouts/s, memory
  curve   as many rollouts as one host's links carry, with and without CURVE: `curve_ratio` is of
          the rates

A whole measurement takes about half an hour. All simulated hosts, the broker and the client share
this machine's processors, so what it says of more hosts ends where those are full: the columns
`cores` (of the candidate) and `machine` (of all that runs here) tell when. Not measured: a real
network, stages that compute, more than one client.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import Any

from bench import scale_bus
from bench.measure import interleave, json_line, table, write_results
from bench.scale_shape import Load, Point

Measure = Callable[[Load, float, float], Point]
"""Measure a load for some seconds after a warm-up of some."""
WARMUP_S = 2.0

HOSTS = (1, 2, 4, 8)
MEAN_S = 2.0
PACES_S = (2.0, 0.5, 0.125)
MANY = Load(hosts=2, run_slots=1280, side_slots=320, mean_s=8.0, in_flight=2400)
MANY_HOSTS = Load(hosts=8, run_slots=320, side_slots=80, mean_s=8.0, in_flight=2400)
SUFFIXES = {
    "rollmq": "",
    "rollmq on 8": "_on_8_hosts",
    "ray": "_ray",
    "ray on 8": "_ray_on_8_hosts",
}
"""Of the figures, by candidate."""
FULL_LINKS = Load(hosts=1, run_slots=256, side_slots=64, mean_s=0.125, in_flight=512)
PARTS = ("hosts", "pace", "many", "curve")
Parts = dict[str, dict[str, Point]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to measure: seconds of a window, its warm-up in mean runs, and rounds."""

    seconds: float
    warmup_runs: float
    rounds: int

    def run(
        self,
        title: str,
        candidates: Mapping[str, tuple[Measure, Load]],
        key: Callable[[Point], float] = attrgetter("rollouts_per_s"),
    ) -> dict[str, Point]:
        """Measure candidates in alternation; return each one's run in the middle by `key`."""

        def timed(measure: Measure, load: Load, seconds: float) -> Point:
            return measure(load, seconds, WARMUP_S + self.warmup_runs * load.mean_s)

        def report(name: str, point: Point) -> None:
            print(f"{title}: {name}: {_said(point)}", file=sys.stderr, flush=True)

        calls = {name: partial(timed, *candidate) for name, candidate in candidates.items()}
        return interleave(calls, self.seconds, self.rounds, key=key, report=report)


FULL, QUICK = Patience(20.0, 3.0, 3), Patience(6.0, 2.0, 1)


def full_host(hosts: int, mean_s: float) -> Load:
    """Return the load that keeps every run slot of so many hosts busy."""
    return Load(hosts=hosts, run_slots=32, side_slots=8, mean_s=mean_s, in_flight=hosts * 64)


def hosts(patience: Patience) -> dict[str, Point]:
    """Measure more and more hosts."""
    loads = {str(count): full_host(count, MEAN_S) for count in HOSTS}
    return patience.run("hosts", {name: (scale_bus.run, load) for name, load in loads.items()})


def pace(patience: Patience) -> dict[str, Point]:
    """Measure runs that get shorter, rollmq and Ray side by side."""
    found: dict[str, Point] = {}
    for mean_s in PACES_S:
        load = full_host(HOSTS[-1], mean_s)
        sides = {f"rollmq {mean_s:g} s": (scale_bus.run, load), f"ray {mean_s:g} s": (_ray, load)}
        found |= patience.run("pace", sides)
    return found


def many(patience: Patience) -> dict[str, Point]:
    """Measure 2,000 rollouts that run at once, on few hosts and on many."""
    sides = {
        f"{name}{suffix}": (measure, load)
        for name, measure in (("rollmq", scale_bus.run), ("ray", _ray))
        for suffix, load in (("", MANY), (" on 8", MANY_HOSTS))
    }
    return patience.run("many", sides, attrgetter("dispatch_p99_ms"))


def curve(patience: Patience) -> dict[str, Point]:
    """Measure the links with and without CURVE."""
    with_keys = partial(scale_bus.run, keys=True)
    sides = {"plain": (scale_bus.run, FULL_LINKS), "curve": (with_keys, FULL_LINKS)}
    return patience.run("curve", sides)


def _ray(load: Load, seconds: float, warmup_s: float) -> Point:
    measure: Measure = import_module("bench.scale_ray").run
    return measure(load, seconds, warmup_s)


def values(found: Parts) -> dict[str, Any]:
    """Return the figures of the parts that were measured, by the names that they are known by."""
    figures: dict[str, Any] = {}
    if "hosts" in found:
        one, *more = (found["hosts"][str(count)] for count in HOSTS)
        for count, point in zip(HOSTS[1:], more, strict=True):
            figures[f"efficiency_{count}"] = point.rollouts_per_s / (count * one.rollouts_per_s)
        figures |= {"rollouts_per_s_8": more[-1].rollouts_per_s, "cores_8": more[-1].cores}
    if "many" in found:
        for name, point in found["many"].items():
            suffix = SUFFIXES[name]
            figures[f"dispatch_p99_ms{suffix}"] = point.dispatch_p99_ms
            figures[f"running_many{suffix}"] = point.running
            figures[f"rollouts_per_s_many{suffix}"] = point.rollouts_per_s
            figures[f"memory_bytes_many{suffix}"] = point.memory_bytes
    if "pace" in found:
        rates = {name: point.rollouts_per_s for name, point in found["pace"].items()}
        last = f"{PACES_S[-1]:g} s"
        figures["ratio_ray"] = rates[f"rollmq {last}"] / rates[f"ray {last}"]
        figures["busy_at_pace"] = {name: point.busy for name, point in found["pace"].items()}
        figures["cores_at_pace"] = {name: point.cores for name, point in found["pace"].items()}
    if "curve" in found:
        both = found["curve"]
        figures["curve_ratio"] = both["curve"].rollouts_per_s / both["plain"].rollouts_per_s
        figures["curve_cpu_ratio"] = _cpu_ms(both["curve"]) / _cpu_ms(both["plain"])
    return figures


def _cpu_ms(point: Point) -> float:
    return point.cores / point.rollouts_per_s * 1e3


def _said(point: Point) -> str:
    return (
        f"{point.rollouts_per_s:.1f}/s, slots {point.busy:.0%} busy, {point.cores:.2f} cores of "
        f"{point.machine_cores:.2f} in use, dispatch p99 {point.dispatch_p99_ms:.1f} ms"
    )


def show(found: Parts) -> str:
    """Return the table of everything that was measured."""
    heads = ["part", "candidate", "rollouts/s", "slots busy", "running", "p50 ms", "p99 ms"]
    heads += ["cores", "machine", "CPU ms", "memory MB"]
    rows = [
        (
            part,
            name,
            point.rollouts_per_s,
            point.busy,
            point.running,
            *((point.dispatch_p50_ms, point.dispatch_p99_ms) if part == "many" else ("", "")),
            point.cores,
            point.machine_cores,
            _cpu_ms(point),
            point.memory_bytes // 1_000_000,
        )
        for part, points in found.items()
        for name, point in points.items()
    ]
    return table(heads, rows)


def main() -> None:
    """Print tables, and with --json one line at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of short windows")
    parser.add_argument("--seconds", type=float, help="of each window, in place of 20")
    parser.add_argument("--rounds", type=int, help="of each candidate, in place of 3")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="not all of it")
    parser.add_argument("--json", action="store_true", help="one line of JSON last")
    options = parser.parse_args()
    patience = QUICK if options.quick else FULL
    patience = replace(
        patience,
        seconds=options.seconds or patience.seconds,
        rounds=options.rounds or patience.rounds,
    )
    measures = {"hosts": hosts, "pace": pace, "many": many, "curve": curve}
    found: Parts = {}
    for part in options.parts:
        found[part] = measures[part](patience)
        print(show({part: found[part]}), flush=True)
    figures = values(found)
    write_results("scale", {**figures, "points": found, "processors": os.cpu_count()})
    if options.json:
        print(json_line(figures))


if __name__ == "__main__":
    main()
