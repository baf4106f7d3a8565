"""`rollmq doctor`: what is wrong with a running topology, who owns it, and what to do.

    rollmq doctor topology.yaml
    rollmq doctor topology.yaml --rollout t-1-0 --json

Job: look twice, print findings or one rollout.
Does not know: what is wrong with what; findings.py and its rules do.
Invariants: exit status 0 if nothing was found, 1 with findings, 2 if the input is wrong.
"""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

from ..client.viewer import Viewer
from ..errors import BrokerUnreachable
from ..topology import Topology, load
from .findings import findings, unreachable
from .found import Finding, seconds
from .rates import Look, Span

WAIT_S = 5.0
STYLES = {"critical": "bold red", "warning": "yellow", "notice": "cyan"}
LEAST_APART_S, MOST_APART_S = 1.0, 10.0


def add_doctor(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    parser = commands.add_parser(
        "doctor",
        help="say what is wrong with a running topology, and what to do",
        description="look twice at a running topology and say what is wrong, the most severe "
        "first; exit status 0: nothing, 1: findings, 2: wrong input",
        epilog="example: rollmq doctor topology.yaml --rollout t-1-0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=_run)
    parser.add_argument("topology", type=Path, help="the topology file")
    parser.add_argument("--rollout", default="", help="what this rollout waits for, too")
    parser.add_argument("--apart", type=float, help="seconds between the two looks")
    parser.add_argument("--json", action="store_true", help="as one JSON line")


def examine(
    viewer: Viewer, topology: Topology, apart_s: float, rollout_id: str = ""
) -> tuple[list[Finding], dict[str, Any]]:
    """Look twice; return what is wrong, and the last status (empty without an answer)."""
    try:
        first = Look(viewer.look(WAIT_S), time.monotonic())
        time.sleep(apart_s)
        last = Look(viewer.look(WAIT_S, rollout_id), time.monotonic())
    except BrokerUnreachable:
        return [unreachable(viewer.endpoint, WAIT_S)], {}
    return findings(Span.between(first, last), topology), last.status


def _run(options: argparse.Namespace, console: Console) -> int:
    topology = load(options.topology)
    usual_s = 1.5 * topology.timeouts.heartbeat_s  # figures of nodes come once a heartbeat
    apart_s = options.apart or min(MOST_APART_S, max(LEAST_APART_S, usual_s))
    with Viewer.at(options.topology) as viewer:
        found, status = examine(viewer, topology, apart_s, options.rollout)
    rollout = status.get("rollout")
    if options.json:
        told = {"findings": [asdict(each) for each in found], "rollout": rollout}
        sys.stdout.write(orjson.dumps(told).decode() + "\n")
    else:
        _print(console, found, rollout)
    if options.rollout and status and rollout is None:
        why = f"no rollout {options.rollout!r}: never submitted here, or forgotten since"
        print(f"rollmq: {why}", file=sys.stderr)  # noqa: T201 - a command's answer
        return 2
    return 1 if found else 0


def _print(console: Console, found: list[Finding], rollout: dict[str, Any] | None) -> None:
    if rollout:
        _print_rollout(console, rollout)
    for each in found:
        head = Text(f"{each.severity:<9}", style=STYLES[each.severity])
        console.print(head.append(f"{each.name}: {each.who}", style="bold"))
        console.print(f"  {each.what}", soft_wrap=True)
        since = f"since {seconds(each.since_s)}; " if each.since_s is not None else ""
        console.print(f"  {since}measured: {each.measured}; bound: {each.bound}", soft_wrap=True)
        console.print(f"  do: {each.advice}\n", soft_wrap=True)
    console.print(f"{len(found)} findings" if found else "nothing is wrong")


def _print_rollout(console: Console, rollout: dict[str, Any]) -> None:
    console.print(
        f"rollout {rollout['rollout_id']} of client {rollout['client_id']}, group "
        f"{rollout['group_id']}, task {rollout['task_id']} ({rollout['task_kind']})"
    )
    since = seconds(rollout["since_s"])
    where = f"stage {rollout['stage']}, attempt {rollout['attempt']}"
    console.print(f"  {rollout['state']} for {since} in {where}; {seconds(rollout['age_s'])} old")
    bound = f", {seconds(rollout['bound_s'])} at most" if rollout["bound_s"] else ""
    console.print(
        f"  waits for {rollout['waits_for']}; owner: {rollout['owner'] or 'nobody'}{bound}"
    )
    if rollout["lease_left_s"] is not None:
        console.print(f"  its lease ends in {seconds(rollout['lease_left_s'])} unless renewed")
    for failure in rollout["failures"]:
        told = f"{failure['boundary']}: {failure['error']}: {failure['message']}"
        console.print(f"  failed attempt {failure['attempt']} of {failure['stage']}: {told}")
    for ago_s, what in rollout["history"]:
        console.print(f"  {seconds(ago_s):>9} ago  {what}")
    console.print()
