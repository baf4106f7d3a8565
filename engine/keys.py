"""`rollmq keys`: make the keys of a topology, add, rotate, revoke and list them.

    rollmq keys new keys --topology topology.yaml
    rollmq keys add keys trainer-0 --role trainer
    rollmq keys rotate keys trainer-0
    rollmq keys revoke keys trainer-0 --old
    rollmq keys list keys

Job: read arguments, change the directory of keys, and say what to copy where.
Does not know: sockets; a running topology reads the list again by itself.
Invariants: no secret is ever printed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from .errors import KeysError
from .security import KeyStore
from .topology import load

ROLES = ("host", "trainer", "operator")


def add_keys(commands: Any) -> None:
    """Add the command and its verbs to a parser's subcommands."""
    text = "make, add, rotate, revoke and list the keys of a topology"
    parser = commands.add_parser("keys", help=text, description=text)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    new = _verb(verbs, "new", _new, "make a server key, one for each host, and an operator's")
    new.add_argument("--topology", type=Path, required=True, help="the topology file")
    add = _verb(verbs, "add", _add, "add a name with a fresh key", named=True)
    add.add_argument("--role", choices=ROLES, required=True, help="what it is for")
    rotate = _verb(
        verbs, "rotate", _rotate, "give a name a fresh key beside those it has", named=True
    )
    rotate.add_argument("--role", choices=ROLES, help="where a host and a client share a name")
    revoke = _verb(verbs, "revoke", _revoke, "allow a name's keys no more, at once", named=True)
    revoke.add_argument("--role", choices=ROLES, help="where a host and a client share a name")
    revoke.add_argument("--old", action="store_true", help="all but the newest of them")
    listed = _verb(verbs, "list", _list, "show who has a key")
    listed.add_argument("--json", action="store_true", help="as one JSON line")


def _verb(verbs: Any, name: str, run: Any, text: str, *, named: bool = False) -> Any:
    parser = verbs.add_parser(name, help=text, description=text)
    parser.set_defaults(command=run)
    parser.add_argument("directory", type=Path, help="the directory of the keys")
    if named:
        parser.add_argument("name", help="whose key")
    return parser


def _new(options: argparse.Namespace, console: Console) -> int:
    topology = load(options.topology)
    store = KeyStore(options.directory)
    store.make(host.name for host in topology.hosts)
    console.print(f"made {store.directory}; next:")
    console.print(f"  keys: {store.directory}    in the topology, beside addresses for its hosts")
    console.print("to every machine: allowed.json, and its own hosts/NAME.secret")
    console.print("to the broker's and the router's machine: server.secret too")
    if topology.keys is None:
        console.print(f"{options.topology} does not name them yet")
    return 0


def _add(options: argparse.Namespace, console: Console) -> int:
    store = KeyStore(options.directory)
    store.add(options.name, options.role)
    console.print(f"made {store.secret(options.name, options.role)}")
    return 0


def _rotate(options: argparse.Namespace, console: Console) -> int:
    store = KeyStore(options.directory)
    store.rotate(options.name, options.role)
    role = store.allowed().find(options.name, options.role).role
    console.print(f"replaced {store.secret(options.name, role)}; the key before is still allowed")
    console.print(f"then: rollmq keys revoke {options.directory} {options.name} --old")
    return 0


def _revoke(options: argparse.Namespace, console: Console) -> int:
    store = KeyStore(options.directory)
    gone = store.revoke(options.name, options.role, old=options.old)
    if not gone:
        raise KeysError(f"{options.name!r} has one key: without --old it is revoked too")
    console.print(f"revoked {len(gone)} of {options.name}; who runs it notices within a second")
    return 0


def _list(options: argparse.Namespace, console: Console) -> int:
    store = KeyStore(options.directory)
    entries = store.allowed().entries
    rows = [
        {
            "name": entry.name,
            "role": entry.role,
            "keys": list(entry.keys),
            "secret_here": store.secret(entry.name, entry.role).exists(),
        }
        for entry in entries
    ]
    if options.json:
        sys.stdout.write(orjson.dumps(rows).decode() + "\n")
        return 0
    table = Table("name", "role", "keys", "secret here", box=None)
    for entry, row in zip(entries, rows, strict=True):
        here = "yes" if row["secret_here"] else "no"
        table.add_row(entry.name, entry.role, str(len(entry.keys)), here)
    console.print(table)
    return 0
