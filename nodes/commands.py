"""Commands of the rollmq program that know about tokens and tasks: `tasks` and `show`.

    rollmq tasks reasoning-gym --names gcd,lcm --count 100 --seed 7 --out tasks.jsonl
    rollmq show ROLLOUT --out DIR [--json] [--tokens N]

Job: read arguments, call what does the work, return an exit status.
Does not know: how tasks are made or rollouts are drawn.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson

from engine.errors import RollmqError


def tasks(arguments: Sequence[str]) -> int:
    """Write tasks as JSON lines; return the exit status."""
    example = "rollmq tasks reasoning-gym --names gcd,lcm --count 100 --seed 7 --out tasks.jsonl"
    parser = _parser("tasks", "write tasks, one a line", example)
    sources = parser.add_subparsers(dest="source", required=True)
    gym = sources.add_parser(
        "reasoning-gym",
        help="questions of the package reasoning-gym",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gym.add_argument("--names", required=True, help="datasets, separated by commas")
    gym.add_argument("--count", type=int, required=True, help="tasks in all")
    gym.add_argument("--seed", type=int, default=0)
    gym.add_argument("--turns", type=int, default=1, help="2: ask to check the answer")
    gym.add_argument("--max-tokens", type=int, default=512, help="to sample in each turn")
    gym.add_argument("--out", type=Path, required=True, help="the file to write")
    chosen = parser.parse_args(arguments)
    from .tasks.questions import reasoning_gym_tasks  # noqa: PLC0415 - an optional dependency

    limits = {"turns": chosen.turns, "max_tokens": chosen.max_tokens}
    names = [name.strip() for name in chosen.names.split(",") if name.strip()]
    try:
        made = list(reasoning_gym_tasks(names, chosen.count, chosen.seed, limits))
    except ValueError as wrong:
        print(wrong, file=sys.stderr)  # noqa: T201 - a command's answer
        return 2
    chosen.out.write_bytes(b"".join(orjson.dumps(task) + b"\n" for task in made))
    print(f"{len(made)} tasks in {chosen.out}")  # noqa: T201 - a command's answer
    return 0


def show(arguments: Sequence[str]) -> int:
    """Show one finished rollout; return the exit status."""
    parser = _parser("show", "show a finished rollout", "rollmq show ROLLOUT --out out")
    parser.add_argument("rollout", help="its rollout_id, or the beginning of it")
    parser.add_argument("--out", type=Path, required=True, help="the directory of a finished run")
    parser.add_argument("--json", action="store_true", help="its record as JSON")
    parser.add_argument("--tokens", type=int, default=0, help="list so many tokens one by one")
    chosen = parser.parse_args(arguments)
    from .show import find, show_json, show_rollout  # noqa: PLC0415 - needs the tokenizer

    try:
        rollout = find(chosen.out / "trajectories.jsonl", chosen.rollout)
    except (RollmqError, OSError, LookupError) as wrong:
        print(wrong, file=sys.stderr)  # noqa: T201 - a command's answer
        return 2
    if chosen.json:
        show_json(rollout)
    else:
        show_rollout(rollout, chosen.tokens)
    return 0


def _parser(name: str, text: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"rollmq {name}",
        description=text,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
