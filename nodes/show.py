"""A finished rollout on a terminal: turns, tokens by mask, log-probabilities, timings, failures.

Job: draw. Does not know: how the rollout came about, or which task kind it is of; what it does not
find is left out.
Invariants: sampled tokens are green, the more improbable the more yellow; all others are dim.
Nothing in a rollout can be taken for terminal markup.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.output import read_rollouts
from engine.records import Rollout, Trajectory

from . import tokens

UNLIKELY = -2.0  # log-probabilities below are drawn yellow
VERY_UNLIKELY = -4.0  # and below these red
JSON_OPTIONS = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY


def find(file: Path, beginning: str) -> Rollout:
    """Return the one rollout of a file whose id begins so; an exact match wins.

    Raises: LookupError if there is none or more than one; OSError if the file cannot be read.
    """
    found: dict[str, Rollout] = {}
    for rollout in read_rollouts(file):
        if rollout.rollout_id == beginning:
            return rollout
        if rollout.rollout_id.startswith(beginning):
            found[rollout.rollout_id] = rollout
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        few = ", ".join(list(found)[:5])
        raise LookupError(f"{len(found)} rollouts begin with {beginning!r}: {few}")
    raise LookupError(f"no rollout {beginning!r} in {file}")


def show_json(rollout: Rollout) -> None:
    """Print the whole record as JSON, arrays as lists."""
    sys.stdout.buffer.write(orjson.dumps(asdict(rollout), option=JSON_OPTIONS) + b"\n")


def show_rollout(rollout: Rollout, listed: int = 0, console: Console | None = None) -> None:
    """Draw a rollout; `listed` tokens are listed one by one."""
    console = console or Console(highlight=False)
    console.print(_head(rollout))
    if rollout.trajectory is not None:
        for part in _conversation(rollout, rollout.trajectory):
            console.print(part)
        if listed:
            console.print(_listing(rollout.trajectory, listed))
    if rollout.timings:
        console.print(_timings(rollout))
    for failure in rollout.failures:
        text = f"{failure.stage} attempt {failure.attempt}: {failure.boundary}: {failure.error}"
        console.print(Text(f"{text}: {failure.message} ({failure.node})", style="red"))
    if rollout.receipt is not None:
        console.print(Text(f"receipt: {asdict(rollout.receipt)}", style="yellow"))


def _head(rollout: Rollout) -> Text:
    reward = "none" if rollout.reward is None else f"{rollout.reward:g}"
    length = 0 if rollout.trajectory is None else len(rollout.trajectory)
    facts = {
        "rollout": rollout.rollout_id,
        "group": rollout.group_id,
        "task": rollout.task_id,
        "outcome": rollout.outcome,
        "reward": reward,
        "trainable": "yes" if rollout.trainable else "no",
        "tokens": str(length),
        "seconds": f"{rollout.total_s:.3f}",
    }
    head = Text()
    for name, value in facts.items():
        head.append(f"{name} ", style="dim").append(f"{value}  ", style="bold")
    return head


def _conversation(rollout: Rollout, trajectory: Trajectory) -> Iterator[Text]:
    turns = rollout.data.get("run", {}).get("turns", [])
    done = 0
    for number, turn in enumerate(turns, start=1):
        end = turn["completion"][1]
        yield Text(_turn_line(number, turn, trajectory), style="cyan")
        yield _coloured(trajectory, done, end)
        done = end
    if done < len(trajectory):
        yield _coloured(trajectory, done, len(trajectory))


def _turn_line(number: int, turn: dict[str, Any], trajectory: Trajectory) -> str:
    start, end = turn["completion"]
    logprobs = trajectory.logprobs[start:end]
    mean = float(logprobs.mean()) if len(logprobs) else 0.0
    return (
        f"turn {number}: prompt {start} tokens ({turn['cached_tokens']} cached), completion "
        f"{end - start}, {turn['finish_reason']}, {turn['seconds']:.3f} s, mean logprob {mean:.3f}"
    )


def _coloured(trajectory: Trajectory, start: int, end: int) -> Text:
    text, vocabulary = Text(), tokens.load()
    place = start
    while place < end:
        style = _style(trajectory, place)
        run = place + 1
        while run < end and _style(trajectory, run) == style:
            run += 1
        text.append(vocabulary.decode(trajectory.token_ids[place:run]), style=style)
        place = run
    return text


def _style(trajectory: Trajectory, place: int) -> str:
    if not trajectory.loss_mask[place]:
        return "dim"
    logprob = trajectory.logprobs[place]
    if logprob < VERY_UNLIKELY:
        return "red"
    return "yellow" if logprob < UNLIKELY else "green"


def _listing(trajectory: Trajectory, listed: int) -> Table:
    table, vocabulary = Table(box=None), tokens.load()
    for name in ("position", "id", "mask", "logprob", "text"):
        table.add_column(name, justify="left" if name == "text" else "right")
    for place in range(min(listed, len(trajectory))):
        number = int(trajectory.token_ids[place])
        shown = Text(repr(vocabulary.decode([number])), style=_style(trajectory, place))
        logprob = f"{trajectory.logprobs[place]:.4f}"
        table.add_row(str(place), str(number), str(trajectory.loss_mask[place]), logprob, shown)
    return table


def _timings(rollout: Rollout) -> Table:
    table = Table(box=None)
    for name in ("stage", "attempt", "node", "queue s", "lease s", "work s"):
        table.add_column(name, justify="left" if name in {"stage", "node"} else "right")
    for timing in rollout.timings:
        seconds = (f"{value:.3f}" for value in (timing.queue_s, timing.lease_s, timing.work_s))
        table.add_row(timing.stage, str(timing.attempt), timing.node, *seconds)
    return table
