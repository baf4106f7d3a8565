"""`rollmq backends`: list inference backends, add one, drain one, remove one, while a run goes on.

    rollmq backends list topology.yaml
    rollmq backends add topology.yaml --url http://127.0.0.1:8000
    rollmq backends drain topology.yaml sim-0
    rollmq backends remove topology.yaml added1

Job: read arguments, ask the router through a client, print what it answers.
Does not know: what a backend is.
Invariants: each command ends with how every backend is then.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from .client import Client
from .records import BackendState
from .security import operator_name

Ask = Callable[[Client, argparse.Namespace], tuple[BackendState, ...]]
CONNECT_S = 5.0


def add_backends(commands: Any) -> None:
    """Add the command and its four verbs to a parser's subcommands."""
    text = "list, add, drain or remove inference backends while a topology runs"
    parser = commands.add_parser("backends", help=text, description=text)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _verb(verbs, "list", _list, "show every backend", "rollmq backends list topology.yaml")
    add = _verb(
        verbs,
        "add",
        _add,
        "add a backend, which the router starts and keeps up, also after its own restart",
        "rollmq backends add topology.yaml --url http://127.0.0.1:8000\n"
        "         rollmq backends add topology.yaml --kind simulator --options '{\"speed\": 5}'",
    )
    add.add_argument("--kind", default="vllm", help="vllm (default) or simulator")
    add.add_argument("--url", help="of a running server; the same as the option `url`")
    add.add_argument("--name", default="", help="1 to 24 characters; chosen if left out")
    add.add_argument("--capacity", type=int, default=64, help="requests it takes at once")
    add.add_argument("--options", type=_options, default={}, help="of its kind, a JSON object")
    drain = _verb(
        verbs,
        "drain",
        _drain,
        "place no new session on a backend; what is open goes on",
        "rollmq backends drain topology.yaml sim-0",
    )
    drain.add_argument("name", help="as `list` shows it")
    drain.add_argument("--undo", action="store_true", help="place new sessions there again")
    remove = _verb(
        verbs,
        "remove",
        _remove,
        "use a backend no more; what is open on it goes elsewhere (add its name to have it back)",
        "rollmq backends remove topology.yaml added1",
    )
    remove.add_argument("name", help="as `list` shows it")


def backend_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Draw what nodes look after, one row each: name, state, and figures by name."""
    names = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    table = Table("backend", "state", *(name.replace("_", " ") for name in names), box=None)
    for row in rows:
        figures = (f"{row['figures'].get(name, 0.0):g}" for name in names)
        table.add_row(row["name"], row["state"], *figures)
    return table


def _verb(verbs: Any, name: str, ask: Ask, text: str, example: str) -> Any:
    parser = verbs.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=_run, ask=ask)
    parser.add_argument("topology", type=Path, help="the topology file")
    parser.add_argument("--json", action="store_true", help="as one JSON line")
    return parser


def _run(options: argparse.Namespace, console: Console) -> int:
    key = operator_name(options.topology)
    with Client(options.topology, window=1, connect_s=CONNECT_S, key=key) as client:
        states = options.ask(client, options)
    if options.json:
        sys.stdout.write(orjson.dumps(states).decode() + "\n")
        return 0
    console.print(backend_table([_row(state) for state in states]))
    for state in states:
        if state.reason:
            console.print(f"{state.name}: {state.reason}")
    return 0


def _row(state: BackendState) -> dict[str, Any]:
    word = f"{state.state}, draining" if state.draining else state.state
    figures = {
        "sessions": state.sessions,
        "running": state.running,
        "waiting": state.waiting,
        "capacity": state.capacity,
        "policy_version": state.policy_version,
        "hit_rate": round(state.figures.get("hit_rate", 0.0), 3),
    }
    return {"name": state.name, "state": word, "figures": figures}


def _list(client: Client, _options: argparse.Namespace) -> tuple[BackendState, ...]:
    return client.backends()


def _add(client: Client, options: argparse.Namespace) -> tuple[BackendState, ...]:
    given = {**options.options, **({"url": options.url} if options.url else {})}
    return client.add_backend(
        given, kind=options.kind, name=options.name, capacity=options.capacity
    )


def _drain(client: Client, options: argparse.Namespace) -> tuple[BackendState, ...]:
    return client.drain_backend(options.name, undo=options.undo)


def _remove(client: Client, options: argparse.Namespace) -> tuple[BackendState, ...]:
    return client.remove_backend(options.name)


def _options(text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as wrong:
        raise argparse.ArgumentTypeError(f"not JSON: {wrong}") from None
    if value.__class__ is not dict:
        raise argparse.ArgumentTypeError("expected a JSON object")
    options: dict[str, Any] = value
    return options
