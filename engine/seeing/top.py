"""`rollmq top`: a running topology, live.

    rollmq top topology.yaml
    rollmq top topology.yaml --once
    rollmq top topology.yaml --json

Job: look again and again, and draw.
Does not know: what is drawn.
Invariants: a broker that goes is said to be away, and found again when it is back; Ctrl-C ends
with status 0 and leaves the terminal as it was.
"""

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..client.viewer import Viewer
from ..errors import BrokerUnreachable
from ..topology import load
from .frame import frame, summary
from .rates import Look, Span

WAIT_S = 5.0
PATIENCE_S = 2.0  # of a live view: then the broker is said to be away
APART_S = 1.0  # between the two looks of --once and --json


def add_top(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    parser = commands.add_parser(
        "top",
        help="watch a running topology: hosts, stages, queues, backends, the slowest waits",
        description="watch a running topology until Ctrl-C",
        epilog="example: rollmq top topology.yaml --interval 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=_run)
    parser.add_argument("topology", type=Path, help="the topology file")
    parser.add_argument("--interval", type=_interval, default=1.0, help="seconds between two looks")
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument("--json", action="store_true", help="print one status as a JSON line")


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("expected seconds from 0.1 to 3600")
    return seconds


def _run(options: argparse.Namespace, console: Console) -> int:
    name = load(options.topology).name
    with Viewer.at(options.topology) as viewer:
        if options.once or options.json:
            span = _two_looks(viewer)
            if options.json:
                sys.stdout.write(orjson.dumps(summary(span)).decode() + "\n")
            else:
                console.print(frame(span, name))
            return 0
        with suppress(KeyboardInterrupt):
            _watch(viewer, console, name, options.interval)
    return 0


def _two_looks(viewer: Viewer) -> Span:
    first = Look(viewer.look(WAIT_S), time.monotonic())
    time.sleep(APART_S)
    return Span.between(first, Look(viewer.look(WAIT_S), time.monotonic()))


def _watch(viewer: Viewer, console: Console, name: str, interval_s: float) -> None:
    before: Look | None = None
    drawn: RenderableType = Text(f"looking for the broker at {viewer.endpoint}")
    heard_at = time.monotonic()
    with Live(drawn, console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            began = time.monotonic()
            try:
                last = Look(viewer.look(PATIENCE_S), time.monotonic())
            except BrokerUnreachable:
                away_s = time.monotonic() - heard_at
                told = f"the broker at {viewer.endpoint} has not answered for {away_s:.0f} s"
                live.update(Group(Text(told, style="bold red"), drawn), refresh=True)
                continue
            heard_at = last.at
            drawn, before = frame(Span.between(before, last), name), last
            live.update(drawn, refresh=True)
            time.sleep(max(0.0, began + interval_s - time.monotonic()))
