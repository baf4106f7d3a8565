"""A finished rollout on a terminal: turns, tools, tokens by mask, log-probabilities, timings.

Job: draw. Does not know: how the rollout came about, or which task kind it is of; what it does not
find is left out.
Invariants: sampled tokens are green, the more improbable the more yellow; all others are dim.
Nothing in a rollout can be taken for terminal markup.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from msgspec import to_builtins
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from engine.output import read_rollouts
from engine.trajectories import Rollout, Trajectory

from . import tokens
from .transcript import Ids

UNLIKELY = -2.0  # log-probabilities below are drawn yellow
VERY_UNLIKELY = -4.0  # and below these red
JSON_OPTIONS = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY

Decode = Callable[[Ids], str]


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
    sys.stdout.buffer.write(orjson.dumps(asdict(rollout), to_builtins, JSON_OPTIONS) + b"\n")


def console_for(color: str) -> Console:
    """Return a console; `color` is never, always, or auto: only on a terminal.

    Raises: KeyError for another word.
    """
    forced = {"never": False, "always": True, "auto": None}[color]
    return Console(highlight=False, force_terminal=forced, no_color=forced is False)


def show_rollout(rollout: Rollout, listed: int = 0, console: Console | None = None) -> None:
    """Draw a rollout; `listed` tokens are listed one by one."""
    console = console or Console(highlight=False)
    console.print(_head(rollout))
    limit = (rollout.data.get("run") or {}).get("limit")
    if limit:
        console.print(Text(f"ended by its limit: {limit}", style="yellow"))
    if rollout.trajectory is not None:
        for part in _conversation(rollout, rollout.trajectory):
            console.print(part)
        if listed:
            painter = Painter(rollout.trajectory, decoder(rollout))
            console.print(painter.listing(listed))
    if rollout.timings:
        console.print(_timings(rollout))
    for failure in rollout.failures:
        text = f"{failure.stage} attempt {failure.attempt}: {failure.boundary}: {failure.error}"
        console.print(Text(f"{text}: {failure.message} ({failure.node})", style="red"))
    if rollout.receipt is not None:
        console.print(Text(f"receipt: {to_builtins(rollout.receipt)}", style="yellow"))


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
    """Yield each segment's line, each turn's lines, and the tokens before and in them."""
    ran = rollout.data.get("run") or {}
    opened = {each["start"]: each["reason"] for each in ran.get("segments", [])[1:]}
    painter, done = Painter(trajectory, decoder(rollout)), 0
    for number, turn in enumerate(ran.get("turns", []), start=1):
        for start in [start for start in opened if done <= start <= turn["prompt"][0]]:
            yield from painter.rest(done, start)
            yield Text(f"new segment at {start}: {opened[start]}", style="magenta")
            done = start
        yield Text(_turn_line(number, turn, trajectory), style="cyan")
        yield painter.paint(done, turn["completion"][1])
        for used in turn.get("tools", []):
            yield Text(_tool_line(used), style="red" if used["error"] else "blue")
        done = turn["completion"][1]
    yield from painter.rest(done, len(trajectory))


def _turn_line(number: int, turn: dict[str, Any], trajectory: Trajectory) -> str:
    start, end = turn["completion"]
    prompt = start - turn["prompt"][0]
    logprobs = trajectory.logprobs[start:end]
    mean = float(logprobs.mean()) if len(logprobs) else 0.0
    parts = [
        f"turn {number}: prompt {prompt} tokens ({turn['cached_tokens']} cached)",
        f"completion {end - start}",
        turn["finish_reason"],
        f"{turn['seconds']:.3f} s{_backend_times(turn)}",
        f"mean logprob {mean:.3f}",
        f"versions {_versions(trajectory, start, end)}",
    ]
    if turn.get("aborts"):
        parts.append(f"resumed {turn['aborts']} times")
    return ", ".join(parts)


def _backend_times(turn: dict[str, Any]) -> str:
    if not turn.get("backend"):
        return ""
    names = ("queue", "prefill", "decode")
    times = ", ".join(f"{name} {turn[f'{name}_s']:.3f}" for name in names)
    return f" on {turn['backend']} ({times})"


def _versions(trajectory: Trajectory, start: int, end: int) -> str:
    spans = [
        (max(first, start), min(last, end), version)
        for first, last, version in trajectory.policy_spans.tolist()
        if first < end and last > start
    ]
    if len(spans) == 1:
        return str(spans[0][2])
    return " ".join(f"{version} at {first}-{last}" for first, last, version in spans) or "unknown"


def _tool_line(used: dict[str, Any]) -> str:
    said = f": {used['error']}" if used["error"] else ""
    return f"tool {used['name'] or 'call'}: {used['seconds']:.6f} s{said}"


class Painter:
    """Draws tokens: their text, coloured by mask and log-probability."""

    def __init__(self, trajectory: Trajectory, decode: Decode) -> None:
        self._trajectory = trajectory
        self._decode = decode

    def paint(self, start: int, end: int) -> Text:
        """Return the tokens from start to end as coloured text."""
        text, place = Text(), start
        while place < end:
            style = self.style(place)
            run = place + 1
            while run < end and self.style(run) == style:
                run += 1
            text.append(self._decode(self._trajectory.token_ids[place:run]), style=style)
            place = run
        return text

    def rest(self, start: int, end: int) -> Iterator[Text]:
        """Yield the tokens from start to end, if there are any."""
        if start < end:
            yield self.paint(start, end)

    def style(self, place: int) -> str:
        """Return the colour of one token."""
        if not self._trajectory.loss_mask[place]:
            return "dim"
        logprob = self._trajectory.logprobs[place]
        if logprob < VERY_UNLIKELY:
            return "red"
        return "yellow" if logprob < UNLIKELY else "green"

    def listing(self, listed: int) -> Table:
        """Return a table of the first tokens, one a row."""
        table, trajectory = Table(box=None), self._trajectory
        for name in ("position", "id", "mask", "logprob", "text"):
            table.add_column(name, justify="left" if name == "text" else "right")
        for place in range(min(listed, len(trajectory))):
            ids = trajectory.token_ids[place : place + 1]
            shown = Text(repr(self._decode(ids)), style=self.style(place))
            mask, logprob = str(trajectory.loss_mask[place]), f"{trajectory.logprobs[place]:.4f}"
            table.add_row(str(place), str(ids[0]), mask, logprob, shown)
        return table


def decoder(rollout: Rollout) -> Decode:
    """Return what turns a rollout's token IDs into text: of the model's folder that it names.

    Where that folder is not here, the IDs themselves are the text.
    """
    folder = (rollout.data.get("run") or {}).get("template")
    if not folder:
        return tokens.load().decode
    file = Path(folder) / "tokenizer.json"
    if not file.exists():
        return lambda ids: "".join(f" {number}" for number in ids)
    tokenizer: Any = Tokenizer.from_file(str(file))
    return lambda ids: str(tokenizer.decode(ids.tolist(), skip_special_tokens=False))


def _timings(rollout: Rollout) -> Table:
    table = Table(box=None)
    for name in ("stage", "attempt", "node", "queue s", "lease s", "work s"):
        table.add_column(name, justify="left" if name in {"stage", "node"} else "right")
    for timing in rollout.timings:
        seconds = (f"{value:.3f}" for value in (timing.queue_s, timing.lease_s, timing.work_s))
        table.add_row(timing.stage, str(timing.attempt), timing.node, *seconds)
    return table
