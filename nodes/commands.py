"""Commands of the rollmq program that know about tokens and tasks: `tasks` and `show`.

    rollmq tasks calculator --count 100 --seed 7 --out tasks.jsonl
    rollmq tasks math --from problems.parquet --out tasks.jsonl
    rollmq tasks reasoning-gym --names gcd,lcm --count 100 --seed 7 --out tasks.jsonl
    rollmq show ROLLOUT --out DIR [--json] [--tokens N] [--color WHEN]

Job: read arguments, call what does the work, return an exit status.
Does not know: how tasks are made or rollouts are drawn.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from engine.errors import RollmqError

from .task_files import add_sources


def tasks(arguments: Sequence[str]) -> int:
    """Write tasks as JSON lines; return the exit status."""
    example = "rollmq tasks calculator --count 100 --seed 7 --out tasks.jsonl"
    parser = _parser("tasks", "write tasks, one a line", example)
    sources = parser.add_subparsers(dest="source", required=True)
    _add_reasoning_gym(sources)
    _add_calculator(sources)
    add_sources(sources)
    chosen = parser.parse_args(arguments)
    try:
        made = list(chosen.make(chosen))
    except (ValueError, RollmqError) as wrong:
        print(wrong, file=sys.stderr)  # noqa: T201 - a command's answer
        return 2
    chosen.out.write_bytes(b"".join(orjson.dumps(task) + b"\n" for task in made))
    print(f"{len(made)} tasks in {chosen.out}")  # noqa: T201 - a command's answer
    return 0


def _add_reasoning_gym(sources: Any) -> None:
    example = "rollmq tasks reasoning-gym --names gcd,lcm --count 100 --seed 7 --out tasks.jsonl"
    gym = _add_source(sources, "reasoning-gym", "questions of the package reasoning-gym", example)
    gym.add_argument("--names", required=True, help="datasets, separated by commas")
    gym.add_argument("--turns", type=int, default=1, help="2: ask to check the answer")
    gym.add_argument("--max-tokens", type=int, default=512, help="to sample in each turn")
    gym.set_defaults(make=_reasoning_gym)


def _add_calculator(sources: Any) -> None:
    example = "rollmq tasks calculator --count 100 --seed 7 --out tasks.jsonl"
    sums = _add_source(sources, "calculator", "sums in several steps, done with a tool", example)
    sums.add_argument("--turns", type=int, default=8, help="of the model, at most")
    sums.add_argument("--max-tokens", type=int, default=256, help="to sample in each turn")
    sums.add_argument("--context-tokens", type=int, default=4096, help="that the model can hold")
    sums.add_argument("--temperature", type=float, default=1.0)
    sums.add_argument("--template", default="", help="the model's folder; rollmq's own by default")
    sums.add_argument("--renderer", default="", help="of the package renderers, such as qwen3")
    sums.set_defaults(make=_calculator)


def _add_source(sources: Any, name: str, text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = sources.add_parser(
        name,
        help=text,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, required=True, help="tasks in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    return parser


def _reasoning_gym(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from .tasks.questions import reasoning_gym_tasks  # noqa: PLC0415 - an optional dependency

    limits = {"turns": chosen.turns, "max_tokens": chosen.max_tokens}
    names = [name.strip() for name in chosen.names.split(",") if name.strip()]
    return reasoning_gym_tasks(names, chosen.count, chosen.seed, limits)


def _calculator(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from .tasks.calculator import calculator_tasks  # noqa: PLC0415 - needs the tokenizer

    names = ("turns", "max_tokens", "context_tokens", "temperature", "template", "renderer")
    settings = {name: getattr(chosen, name) for name in names}
    return calculator_tasks(chosen.count, chosen.seed, settings)


def show(arguments: Sequence[str]) -> int:
    """Show one finished rollout; return the exit status."""
    parser = _parser("show", "show a finished rollout", "rollmq show ROLLOUT --out out")
    parser.add_argument("rollout", help="its rollout_id, or the beginning of it")
    parser.add_argument("--out", type=Path, required=True, help="the directory of a finished run")
    parser.add_argument("--json", action="store_true", help="its record as JSON")
    parser.add_argument("--tokens", type=int, default=0, help="list so many tokens one by one")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    chosen = parser.parse_args(arguments)
    from .show import console_for, find, show_json, show_rollout  # noqa: PLC0415 - the tokenizer

    try:
        rollout = find(chosen.out / "trajectories.jsonl", chosen.rollout)
    except (RollmqError, OSError, LookupError) as wrong:
        print(wrong, file=sys.stderr)  # noqa: T201 - a command's answer
        return 2
    if chosen.json:
        show_json(rollout)
    else:
        show_rollout(rollout, chosen.tokens, console_for(chosen.color))
    return 0


def _parser(name: str, text: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"rollmq {name}",
        description=text,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
