"""The command line: `rollmq`.

    rollmq check topology.yaml                     is the file right, and what does it come to
    rollmq graph topology.yaml                     draw it
    rollmq run topology.yaml --tasks tasks.jsonl --group-size 8 --out out
    rollmq up topology.yaml                        start it and keep it up until Ctrl-C
    rollmq submit slurm topology.yaml              the same as a job of a Slurm cluster
    rollmq status topology.yaml                    what it is doing; or `rollmq status out`
    rollmq top topology.yaml                       watch it, live
    rollmq doctor topology.yaml                    what is wrong with it, and what to do
    rollmq cancel topology.yaml --client ID ...    stop rollouts, with receipts
    rollmq apply topology.yaml                     change what runs into what the file says now
    rollmq backends list topology.yaml             inference backends; also add, drain, remove
    rollmq keys new keys --topology topology.yaml  keys for CURVE; also add, rotate, revoke, list
    rollmq tasks, rollmq show                      from packages that know tasks and tokens

Further commands come from entry points of the group `rollmq.commands`. Exit status: 0 done,
1 something failed, 2 the input is wrong, 3 something is left that needs a restart (`apply`), 130
interrupted. With `--json` standard output ends with one line of JSON.
"""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import orjson
from msgspec import to_builtins
from rich.console import Console

from .apply import add_apply
from .backends import add_backends
from .client import Client
from .display import print_status, print_summary
from .errors import RollmqError, TopologyError
from .graph import ascii_graph, mermaid, svg
from .keys import add_keys
from .logs import configure
from .output import read_tasks
from .run import Attached, RunOptions, look_up, run
from .security import operator_name
from .seeing.doctor import add_doctor
from .seeing.top import add_top
from .slurm.commands import add_slurm_options, add_submit, expect_none, up_on_slurm
from .supervisor import Supervisor
from .topology import load, resolved, resolved_yaml

Command = Callable[[argparse.Namespace, Console], int]
WATCH_S = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    plugins = {point.name: point for point in entry_points(group="rollmq.commands")}
    if given and given[0] in plugins:
        status: int = plugins[given[0]].load()(given[1:])
        return status
    options = _parser(sorted(plugins)).parse_args(given)
    console = Console(stderr=getattr(options, "json", False), highlight=False, markup=False)
    configure("rollmq", "warning")
    command: Command = options.command
    try:
        return command(options, console)
    except TopologyError as wrong:
        print(wrong, file=sys.stderr)  # noqa: T201 - an error's place, as editors read it
        return 2
    except (RollmqError, OSError) as wrong:
        print(f"rollmq: {wrong}", file=sys.stderr)  # noqa: T201 - a command's answer
        return 1
    except KeyboardInterrupt:
        print("rollmq: interrupted", file=sys.stderr)  # noqa: T201 - a command's answer
        return 130


def _parser(plugins: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rollmq",
        description="Rollout-as-a-service for reinforcement learning of LLM agents.",
        epilog=f"further commands: {', '.join(plugins)}; each has --help",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_check(commands)
    _add_run(commands)
    _add_others(commands)
    add_backends(commands)
    add_top(commands)
    add_doctor(commands)
    add_apply(commands)
    add_keys(commands)
    add_submit(commands)
    return parser


def _add(commands: Any, name: str, command: Command, text: str, example: str) -> Any:
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    parser.add_argument("topology", type=Path, help="the topology file")
    return parser


def _add_check(commands: Any) -> None:
    check = _add(
        commands,
        "check",
        _check,
        "check a topology file and print it with every default",
        "rollmq check topology.yaml",
    )
    check.add_argument("--json", action="store_true", help="as JSON")
    graph = _add(
        commands,
        "graph",
        _graph,
        "draw a topology",
        "rollmq graph topology.yaml --format svg > topology.svg",
    )
    graph.add_argument("--format", choices=("ascii", "mermaid", "svg"), default="ascii")


def _add_run(commands: Any) -> None:
    runs = _add(
        commands,
        "run",
        _run,
        "start a topology, run every task of a file, and write trajectories",
        "rollmq run topology.yaml --tasks tasks.jsonl --group-size 8 --out out",
    )
    runs.add_argument("--tasks", type=Path, required=True, help="JSON lines, one task a line")
    runs.add_argument("--group-size", type=_positive, default=1, help="rollouts of each task")
    runs.add_argument("--out", type=Path, required=True, help="directory for what the run leaves")
    runs.add_argument("--resume", action="store_true", help="go on with the run in --out")
    runs.add_argument("--overwrite", action="store_true", help="discard the run in --out")
    runs.add_argument("--attach", action="store_true", help="the topology is up: start nothing")
    runs.add_argument("--quiet", action="store_true", help="no progress")
    runs.add_argument("--json", action="store_true", help="end with the summary as one JSON line")


def _add_others(commands: Any) -> None:
    up = _add(commands, "up", _up, "start a topology until Ctrl-C", "rollmq up topology.yaml")
    up.add_argument("--host", help="only what belongs to this host of the topology")
    up.add_argument(
        "--wait-s",
        type=float,
        help="seconds until the broker and every node here must be there (timeouts.start_s)",
    )
    up.add_argument("--launcher", choices=("local", "slurm"), default="local", help="who starts it")
    add_slurm_options(up)
    status = _add(
        commands,
        "status",
        _status,
        "show what a topology does, or what a run has come to: give its --out directory instead",
        "rollmq status topology.yaml; rollmq status out",
    )
    status.add_argument("--json", action="store_true", help="as one JSON line")
    cancel = _add(
        commands,
        "cancel",
        _cancel,
        "cancel rollouts of a client and print their receipts",
        "rollmq cancel topology.yaml --client trainer-0 --group t-1 --group t-2",
    )
    cancel.add_argument("rollouts", nargs="*", help="rollout ids")
    cancel.add_argument("--client", required=True, help="the client_id that submitted them")
    cancel.add_argument("--group", action="append", default=[], help="a whole group; repeat it")
    cancel.add_argument("--everything", action="store_true", help="all of the client's rollouts")
    cancel.add_argument("--json", action="store_true", help="as one JSON line")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return number


def _check(options: argparse.Namespace, _console: Console) -> int:
    topology = load(options.topology)
    if options.json:
        _print_json(resolved(topology))
    else:
        sys.stdout.write(resolved_yaml(topology))
    return 0


def _graph(options: argparse.Namespace, _console: Console) -> int:
    draw = {"ascii": ascii_graph, "mermaid": mermaid, "svg": svg}[options.format]
    sys.stdout.write(draw(load(options.topology)).rstrip("\n") + "\n")
    return 0


def _run(options: argparse.Namespace, console: Console) -> int:
    topology = load(options.topology)
    tasks = read_tasks(options.tasks)
    asked = RunOptions(
        options.out, options.group_size, options.resume, options.overwrite, options.quiet
    )
    try:
        report = run(topology, tasks, asked, console, Attached() if options.attach else None)
    except KeyboardInterrupt:
        _say_how_to_go_on(options)
        raise
    print_summary(console, report)
    if options.json:
        _print_json(report)
    if report["interrupted"]:
        _say_how_to_go_on(options)
        return 130
    return 1 if report["outcomes"].get("failed") else 0


def _say_how_to_go_on(options: argparse.Namespace) -> None:
    command = ["rollmq", "run", options.topology, "--tasks", options.tasks]
    command += ["--group-size", options.group_size, "--out", options.out, "--resume"]
    told = shlex.join(map(str, command))
    print(f"rollmq: go on with: {told}", file=sys.stderr)  # noqa: T201


def _up(options: argparse.Namespace, console: Console) -> int:
    if options.launcher == "slurm":
        return up_on_slurm(options, console)
    expect_none(options)
    topology = load(options.topology)
    if options.host and options.host not in {host.name for host in topology.hosts}:
        hosts = ", ".join(host.name for host in topology.hosts)
        raise RollmqError(f"no host {options.host!r} in {options.topology}; hosts: {hosts}")
    wait_s = topology.timeouts.start_s if options.wait_s is None else options.wait_s
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stopping.append(received))
    with Supervisor(topology, options.host) as supervisor:
        console.print(f"starting {', '.join(supervisor.pids) or 'nothing'}")
        if "broker" not in supervisor.pids:
            where = f"{topology.broker.host}, {topology.endpoint('control')}"
            console.print(f"waiting for the broker on {where}, up to {wait_s:g} s")
        supervisor.wait_ready(wait_s, lambda: bool(stopping))
        for host, provider in supervisor.sandboxes.items():
            console.print(f"sandboxes on {host}: {provider}")
        if not stopping:
            where = topology.endpoint("front")
            console.print(f"ready: {where}; logs in {topology.run_dir / 'logs'}")
        if not supervisor.pids:
            console.print("nothing runs here by what was applied: `rollmq apply` can change that")
        while not stopping:
            supervisor.watch()
            time.sleep(WATCH_S)
        console.print("draining")
    return 0


def _status(options: argparse.Namespace, console: Console) -> int:
    if options.topology.is_dir():
        return _finished(options, console)
    with Client(options.topology, connect_s=5.0, key=operator_name(options.topology)) as client:
        status = client.status()
    if options.json:
        _print_json(status)
    else:
        print_status(console, status)
    return 0


def _finished(options: argparse.Namespace, console: Console) -> int:
    report = look_up(options.topology)
    if options.json:
        _print_json(report)
        return 0
    if report.get("unfinished"):
        console.print("not finished; so far:")
    print_summary(console, report)
    return 0


def _cancel(options: argparse.Namespace, console: Console) -> int:
    if not (options.rollouts or options.group or options.everything):
        print("rollmq: name rollouts, --group or --everything", file=sys.stderr)  # noqa: T201
        return 2
    with Client(options.topology, window=1, key=operator_name(options.topology)) as client:
        answer = client.cancel(
            options.rollouts,
            group_ids=options.group,
            everything=options.everything,
            client_id=options.client,
        )
    if options.json:
        _print_json(to_builtins(answer))
        return 0
    for receipt in answer.receipts:
        used = receipt.usage
        where = f"in {receipt.stage}" if receipt.stage else "before it began"
        spent = f"{used.turns} turns, {used.tokens} tokens, {used.seconds:.1f} s"
        console.print(f"cancelled {receipt.rollout_id} {where}: {spent}")
    for name in answer.ended:
        console.print(f"had ended: {name}")
    for name in answer.unknown:
        console.print(f"unknown: {name}")
    return 0


def _print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value).decode() + "\n")


if __name__ == "__main__":
    sys.exit(main())
