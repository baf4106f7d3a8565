"""What people see: the live progress of a run, its summary, and the broker's state."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .backends import backend_table
from .summary import Summary

LINE_EVERY_S = 5.0  # where no terminal shows a live display


class RunDisplay:
    """Shows how a run goes; a few lines a minute where there is no terminal."""

    def __init__(self, console: Console, total: int, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._total = total
        self._started = time.monotonic()
        self._line_at = self._started + LINE_EVERY_S
        self._progress = Progress(
            TextColumn("rollouts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        )
        self._task = self._progress.add_task("", total=total)
        self._live: Live | None = None
        if console.is_terminal and not quiet:
            self._live = Live(console=console, refresh_per_second=8, transient=True)
            self._live.start()

    def update(self, summary: Summary, status: dict[str, Any] | None) -> None:
        """Show the state of the run."""
        if self._live is not None:
            self._progress.update(self._task, completed=summary.rollouts)
            parts: list[Any] = [self._progress, self._rates(summary)]
            if status is not None:
                parts.append(stage_table(status))
            self._live.update(Group(*parts))
        elif not self._quiet and time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + LINE_EVERY_S
            self._console.print(self._rates(summary))

    def close(self) -> None:
        """Take the live display away."""
        if self._live is not None:
            self._live.stop()

    def _rates(self, summary: Summary) -> Text:
        passed = max(1e-6, time.monotonic() - self._started)
        rate = summary.fresh / passed
        outcomes = "  ".join(f"{name} {count}" for name, count in summary.outcomes.items())
        left_s = (self._total - summary.rollouts) / rate if rate else float("inf")
        mean = summary.reward_mean
        reward = "-" if mean is None else f"{mean:.3f}"
        done = f"{summary.rollouts}/{self._total}"
        text = f"{done}  {rate:.1f} rollouts/s  ETA {left_s:.0f} s  reward {reward}  {outcomes}"
        return Text(text)


def stage_table(status: dict[str, Any]) -> Table:
    """Draw the stages' counts."""
    table = Table("stage", "ready", "leased", "delayed", "stopping", "oldest s", box=None)
    for stage in status["stages"]:
        counts = [str(stage[name]) for name in ("ready", "leased", "delayed", "stopping")]
        table.add_row(stage["stage"], *counts, f"{stage['oldest_s']:.1f}")
    return table


def worker_table(status: dict[str, Any]) -> Table:
    """Draw the workers and the other nodes."""
    table = Table("node", "role", "host", "leased/slots", "heard s", "state", box=None)
    for worker in status["workers"]:
        state = "silent" if worker["silent"] else "stalled" if worker["lag_s"] else "ok"
        used = f"{worker['leased']}/{worker['slots']}"
        heard = f"{worker['heard_s']:.1f}"
        table.add_row(worker["node"], worker["stage"], worker["host"], used, heard, state)
    for node in status["nodes"]:
        heard = f"{node['heard_s']:.1f}"
        figures = "  ".join(f"{name} {value:g}" for name, value in node["figures"].items())
        table.add_row(node["node"], node["role"], node["host"], "", heard, figures)
    return table


def bound_table(status: dict[str, Any]) -> Table:
    """Draw the bounds and how full they are, and the clients."""
    table = Table("bound", "held", "of", "fill", box=None)
    for name, (held, most) in status["bounds"].items():
        table.add_row(name, f"{held:,}", f"{most:,}", f"{held / most:.1%}")
    for client in status["clients"]:
        name = f"window of {client['client_id']}"
        held, most = client["delivered"], max(1, client["window"])
        table.add_row(name, f"{held:,}", f"{most:,}", f"{held / most:.1%}")
    return table


def part_table(status: dict[str, Any]) -> Table:
    """Draw what the nodes look after, such as the router's backends."""
    return backend_table([part for node in status["nodes"] for part in node["parts"]])


def print_status(console: Console, status: dict[str, Any]) -> None:
    """Print the broker's state."""
    counts = "  ".join(f"{name} {count}" for name, count in status["counts"].items() if count)
    console.print(f"broker {status['broker_id']}  {counts}")
    for draw in (stage_table, worker_table, bound_table):
        console.print(draw(status))
    if any(node["parts"] for node in status["nodes"]):
        console.print(part_table(status))


def print_summary(console: Console, report: dict[str, Any]) -> None:
    """Print a run's summary."""
    outcomes = "  ".join(f"{name} {count}" for name, count in report["outcomes"].items())
    mean = report["reward_mean"]
    reward = "none" if mean is None else f"{mean:.3f}"
    speed = f"{report['rollouts_per_s']:.1f} rollouts/s, {report['tokens_per_s']:,.0f} tokens/s"
    done = f"{report['rollouts']} of {report['asked']} rollouts"
    console.print(f"{done} in {report['seconds']:.1f} s ({speed})")
    console.print(f"outcomes: {outcomes}; mean reward: {reward}")
    table = Table("stage", "", "p50 s", "p90 s", "p99 s", "max s", box=None)
    number: Callable[[float], str] = "{:.4f}".format
    for stage, times in report["stages"].items():
        for what in ("queue_s", "work_s"):
            table.add_row(stage, what.removesuffix("_s"), *map(number, times[what].values()))
    console.print(table)
    for name, figures in report["sections"].items():
        if figures:
            console.print(_section_table(name, figures))
    for failure, count in report["failures"].items():
        console.print(f"failed {count} times: {failure}", style="red")
    console.print(f"trajectories and summary: {report['out']}")


def _section_table(name: str, figures: dict[str, float]) -> Table:
    table = Table(name, "", box=None)
    for figure, value in figures.items():
        shown = f"{value:.1%}" if figure.endswith(("_share", "_rate")) else f"{value:,.4g}"
        table.add_row(figure, shown)
    return table
