"""A picture of a running topology for a terminal.

Job: draw a span as tables: stages, bounds, hosts, backends, the slowest waits. Fits 100 by 40 for
a topology of a few hosts; what is longer is cut and counted.
Does not know: sockets, clocks, or how often it is drawn.
Invariants: pure; nothing is drawn that the status does not say.
"""

from collections import defaultdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .rates import Row, Span, typical_s

BAR = 6
MOST_HOSTS, MOST_WORKERS, MOST_BACKENDS, MOST_CLIENTS, MOST_WAITS = 4, 6, 5, 3, 7
SLOW_LOOP_S = 0.25


def frame(span: Span, name: str) -> RenderableType:
    """Return the picture of a span."""
    status = span.status
    parts = [p for node in status["nodes"] if node["role"] == "router" for p in node["parts"]]
    drawn: list[RenderableType] = [_head(span, name), _stages(span), _bounds(span), _hosts(span)]
    drawn.append(_workers(span))
    if parts:
        drawn.append(_backends(parts))
    drawn.append(_waits(status["waits"]))
    return Group(*drawn)


def bar(held: float, most: float) -> Text:
    """Return a bar of how full something is."""
    share = held / most if most else 0.0
    full = min(BAR, round(BAR * share))
    style = "red" if share >= 0.95 else "yellow" if share >= 0.7 else "green"
    return Text("█" * full + "░" * (BAR - full), style=style)


def _filled(held: float, most: float, told: str) -> Text:
    return bar(held, most).append(f" {told}", style="none")


def _head(span: Span, name: str) -> Text:
    status, counts = span.status, span.status["counts"]
    ended = ("completed", "truncated", "agent_timeout", "failed", "cancelled", "stale")
    rate = sum(span.change("counts", each) for each in ended) / span.seconds if span.seconds else 0
    told = "  ".join(f"{each} {counts[each]}" for each in ended if counts.get(each))
    lag_ms = 1000 * status["loop"].get("lag_s", 0.0)
    state = "recovering" if status["recovering"] else "serving"
    full = "  DISK FULL" if status["journal"].get("full") else ""
    line = f"{name}  {status['broker_id']} {state}  {rate:.1f} ended/s  lag {lag_ms:.0f} ms{full}"
    return Text(f"{line}\n{told}")


def _stages(span: Span) -> Table:
    table = _table("stage", "queued/bound", "bytes", "slots used", "delayed", "in/s", "out/s")
    for column in ("p50 s", "p99 s", "oldest s"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage, before in span.pairs("stages", "stage"):
        waiting = max(stage["queued"].values(), default=0)
        busy = stage["slots"] - stage["slots_free"]
        table.add_row(
            stage["stage"],
            _filled(waiting, stage["bound"], f"{stage['ready']}/{stage['bound']}"),
            _bytes(stage["queued_bytes"]),
            _filled(busy, stage["slots"], f"{busy}/{stage['slots']}"),
            str(stage["delayed"]),
            _rate(span.rate(stage, before, "dispatched")),
            _rate(span.rate(stage, before, "done")),
            *(_seconds(typical_s(stage["duration"], share)) for share in (0.5, 0.99)),
            f"{stage['oldest_s']:.1f}",
        )
    return table


def _bounds(span: Span) -> Table:
    table = _table("bound", "fill", "held", "of")
    for name, (held, most) in span.status["bounds"].items():
        shown = _bytes if name == "bytes" else "{:,}".format
        table.add_row(f"limits.{name}", bar(held, most), shown(held), shown(most))
    clients = sorted(span.status["clients"], key=lambda c: -(c["delivered"] + c["pending"]))
    for client in clients[:MOST_CLIENTS]:
        away = "" if client["connected"] else " (away)"
        name, window = f"window of {client['client_id']}{away}", max(1, client["window"])
        held = client["delivered"]
        waiting = f"{window} +{client['pending']}" if client["pending"] else str(window)
        table.add_row(name, bar(held, window), str(held), waiting)
    _rest(table, len(clients) - MOST_CLIENTS, "clients")
    return table


def _hosts(span: Span) -> Table:
    table = _table("host", "workers", "slots used", "other nodes", "heard s", "worst lag")
    workers, others = defaultdict(list), defaultdict(list)
    for worker in span.status["workers"]:
        workers[worker["host"]].append(worker)
    for node in span.status["nodes"]:
        others[node["host"]].append(node)
    hosts = sorted({*workers, *others})
    for host in hosts[:MOST_HOSTS]:
        leased = sum(worker["leased"] for worker in workers[host])
        slots = sum(worker["slots"] for worker in workers[host])
        every = [*workers[host], *others[host]]
        lags = [max(worker["lag_s"], worker["loop_s"]) for worker in workers[host]]
        lags += [node["figures"].get("loop_lag_s", 0.0) for node in others[host]]
        table.add_row(
            host,
            str(len(workers[host])),
            _filled(leased, slots, f"{leased}/{slots}"),
            _cut(", ".join(node["node"] for node in others[host]), 34),
            f"{max(each['heard_s'] for each in every):.1f}",
            _lag(max(lags)),
        )
    _rest(table, len(hosts) - MOST_HOSTS, "hosts")
    return table


def _workers(span: Span) -> Table:
    """Draw the workers, those that need attention first."""
    table = _table("worker", "host", "stage", "leased/slots", "heard s", "lag", "state")
    workers = sorted(
        span.status["workers"], key=lambda w: (not w["silent"], -w["lag_s"], w["node"])
    )
    for worker in workers[:MOST_WORKERS]:
        culprit = worker["culprit"]
        hung = f"hung in {culprit['rollout_id']}" if culprit else "stands still"
        state = "silent" if worker["silent"] else hung if worker["lag_s"] else "ok"
        table.add_row(
            worker["node"],
            worker["host"],
            worker["stage"],
            f"{worker['leased']}/{worker['slots']}",
            f"{worker['heard_s']:.1f}",
            _lag(max(worker["lag_s"], worker["loop_s"])),
            Text(_cut(state, 36), style="" if state == "ok" else "red"),
        )
    _rest(table, len(workers) - MOST_WORKERS, "workers")
    return table


def _backends(parts: list[Row]) -> Table:
    table = _table("backend", "state", "running", "waiting", "sessions", "hit rate", "stalled s")
    worst = sorted(parts, key=lambda part: (part["state"] == "open", -_figure(part, "stalled_s")))
    for part in worst[:MOST_BACKENDS]:
        stalled_s = _figure(part, "stalled_s")
        table.add_row(
            part["name"],
            part["state"],
            *(f"{_figure(part, each):g}" for each in ("running", "waiting", "sessions")),
            f"{_figure(part, 'hit_rate'):.0%}",
            Text(f"{stalled_s:.1f}", style="red" if stalled_s > 5 else ""),
        )
    _rest(table, len(parts) - MOST_BACKENDS, "backends")
    return table


def _waits(waits: list[Row]) -> Table:
    table = _table("slowest waits", "state", "stage", "since s", "waits for", "owner")
    for wait in waits[:MOST_WAITS]:
        table.add_row(
            _cut(wait["rollout_id"], 22),
            wait["state"],
            wait["stage"],
            f"{wait['since_s']:.1f}",
            _cut(wait["waits_for"], 34),
            _cut(wait["owner"], 18),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold cyan")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _rest(table: Table, left: int, what: str) -> None:
    if left > 0:
        table.add_row(f"and {left} {what} more", style="dim")


def _figure(part: Row, name: str) -> float:
    return float(part["figures"].get(name, 0.0))


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _lag(seconds: float) -> Text:
    return Text(f"{1000 * seconds:.0f} ms", style="red" if seconds >= SLOW_LOOP_S else "")


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def summary(span: Span) -> dict[str, Any]:
    """Return the status as a program reads it, with the rates that two looks give."""
    stages = {
        stage["stage"]: {
            "dispatched_per_s": span.rate(stage, before, "dispatched"),
            "done_per_s": span.rate(stage, before, "done"),
        }
        for stage, before in span.pairs("stages", "stage")
    }
    return {**span.status, "rates": {"seconds": span.seconds, "stages": stages}}
