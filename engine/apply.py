"""`rollmq apply`: change a running topology into what its file says now.

    rollmq apply topology.yaml --dry-run
    rollmq apply topology.yaml

Job: ask the broker for the plan or to carry it out, wait until every launcher has done its part,
and print what changed and what is left.
Does not know: what may change while a topology runs; the broker says so.
Invariants: exit status 0: what runs is what the file says; 3: something needs a restart and was not
done; 1: refused, or a host that is heard did not get there in time.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from .client import Client
from .client.fleet import apply
from .errors import NodeFailed
from .security import operator_name
from .topology import Topology, load

CONNECT_S = 10.0
LOOK_S = 0.2
LEFT = 3


def add_apply(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    text = "change what runs into what the file says now, as far as that goes without a restart"
    parser = commands.add_parser(
        "apply",
        help=text,
        description=text,
        epilog="example: rollmq apply topology.yaml --dry-run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=_apply)
    parser.add_argument("topology", type=Path, help="the topology file")
    parser.add_argument("--dry-run", action="store_true", help="only show what would change")
    parser.add_argument("--json", action="store_true", help="as one JSON line")
    parser.add_argument(
        "--wait-s",
        type=float,
        help="seconds for the hosts to do it (timeouts.start_s and timeouts.drain_s together)",
    )


def changes_table(changes: list[dict[str, Any]]) -> Table:
    """Draw the differences, one row each."""
    table = Table("what", "from", "to", "", box=None)
    for change in changes:
        how = "live" if change["live"] else "restart"
        table.add_row(change["what"], change["was"], change["now"], how)
    return table


def lagging(status: dict[str, Any], lease_s: float) -> dict[str, str]:
    """Return the hosts whose launcher is heard and has not done its part, and why."""
    mark = status["topology"]["mark"]
    return {
        node["host"]: "has another revision" if figures.get("mark") != mark else "is at it"
        for node in status["nodes"]
        if node["role"] == "launcher" and node["heard_s"] <= lease_s
        for figures in [node["figures"]]
        if figures.get("mark") != mark or figures.get("changing")
    }


def _apply(options: argparse.Namespace, console: Console) -> int:
    topology = load(options.topology)
    text = options.topology.read_text(encoding="utf-8")
    wish = apply(str(options.topology), text, dry_run=options.dry_run)
    key = operator_name(options.topology)
    with Client(options.topology, window=1, connect_s=CONNECT_S, key=key) as client:
        answer = client.ask(wish, topology.timeouts.connect_s)
        left = [change for change in answer["changes"] if not change["live"]]
        if not options.json:
            _show(answer, left, console)
        if not options.dry_run:
            _wait(client, topology, options.wait_s)
    if options.json:
        sys.stdout.write(orjson.dumps({**answer, "left": len(left)}).decode() + "\n")
    elif not options.dry_run:
        console.print(f"applied: revision {answer['revision']}")
    return LEFT if left else 0


def _show(answer: dict[str, Any], left: list[dict[str, Any]], console: Console) -> None:
    if not answer["changes"]:
        console.print("nothing to change")
        return
    console.print(changes_table(answer["changes"]))
    if left:
        console.print(
            f"not applied, because it needs a restart: {len(left)} of {len(answer['changes'])}"
        )


def _wait(client: Client, topology: Topology, wait_s: float | None) -> None:
    """Wait until every launcher that is heard goes by the broker's topology.

    Raises: NodeFailed naming the hosts that do not.
    """
    times = topology.timeouts
    patience_s = times.start_s + times.drain_s if wait_s is None else wait_s
    deadline = time.monotonic() + patience_s
    while late := lagging(client.status(), times.lease_s):
        if time.monotonic() > deadline:
            told = ", ".join(f"{host} {why}" for host, why in sorted(late.items()))
            raise NodeFailed(f"accepted, but after {patience_s:g} s not done everywhere: {told}")
        time.sleep(LOOK_S)
