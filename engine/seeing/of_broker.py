"""Findings about the broker's bounds, disk, queues, clients and sandboxes.

Job: one rule for each bound that holds work back, and who holds it there.
Does not know: sockets, clocks or terminals.
Invariants: a rule that needs two looks is silent with one.
"""

from collections.abc import Iterator

from ..figures import quantile
from ..topology import Topology
from .found import Finding, seconds
from .rates import Row, Span, of_late

FULL = 0.95  # of a bound
SLOW_COMMIT_S = 0.25
PATIENCE = 2.0  # heartbeats that a client may keep a full window


def recovery(span: Span, _topology: Topology) -> Iterator[Finding]:
    """Say that a broker waits for the workers that it knew before it was restarted."""
    if span.status["recovering"]:
        yield Finding(
            "notice",
            "recovering",
            "broker",
            "it was restarted and waits for its workers to say what they hold; nothing is lost",
            "not all are back",
            f"lease {seconds(span.status['rules']['lease_s'])}, then it goes on without them",
            "wait",
        )


def disk(span: Span, _topology: Topology) -> Iterator[Finding]:
    """Find a full disk, and one that is slow."""
    journal, free = span.status["journal"], span.status["disk_free_bytes"]
    if journal.get("full"):
        yield Finding(
            "critical",
            "disk-full",
            "broker",
            "its journal cannot be written: new work is refused, and "
            f"{span.status['loop']['waiting_for_disk']} answers wait",
            f"{free / 2**20:,.0f} MiB free",
            "what is queued fits",
            "free space where run_dir is; the broker goes on by itself",
            journal["full_s"],
        )
    before = span.before.status["commit"] if span.before else None
    slow = quantile(of_late(span.status["commit"], before), 0.99)
    if slow is not None and slow > SLOW_COMMIT_S and not journal.get("full"):
        yield Finding(
            "warning",
            "slow-disk",
            "broker",
            "commits take long, and every answer to a trainer waits for one",
            f"99 % within {seconds(slow)}",
            seconds(SLOW_COMMIT_S),
            "put run_dir on a local disk that nobody else writes to, or lower durability",
        )


def bounds(span: Span, _topology: Topology) -> Iterator[Finding]:
    """Find bounds of the broker that are reached, and who keeps them so."""
    for name, (held, most) in span.status["bounds"].items():
        if held < FULL * most:
            continue
        yield Finding(
            "warning",
            "full-bound",
            _slowest(span.status),
            f"limits.{name} is reached: submits wait until it takes or gives back more",
            f"{held:,}",
            f"limits.{name} {most:,}",
            "nothing is lost; raise the bound, or speed up who is named",
            None,
            {"bound": name},
        )


def _slowest(status: Row) -> str:
    """Return who holds most of what the broker holds: a client, or a stage."""
    clients = {c["client_id"]: c["delivered"] + c["held"] + c["pending"] for c in status["clients"]}
    stages = {s["stage"]: s["ready"] + s["leased"] + s["delayed"] for s in status["stages"]}
    name, count = max(clients.items(), key=lambda item: item[1], default=("", 0))
    stage = max(stages, key=lambda each: stages[each])
    if count >= stages[stage]:
        return f"client {name}: {count} results that it has not acknowledged"
    return f"stage {stage}: {stages[stage]} rollouts"


def queues(span: Span, _topology: Topology) -> Iterator[Finding]:
    """Find stages that nobody serves, and those that hold back the stage before."""
    for number, stage in enumerate(span.status["stages"]):
        name = stage["stage"]
        if stage["ready"] and not stage["workers_usable"]:
            yield Finding(
                "critical",
                "stage-without-worker",
                f"stage {name}",
                f"{stage['ready']} rollouts wait, and no worker of it answers",
                f"0 of {stage['workers']} workers",
                "at least one",
                f"start workers of {name}, or look into their logs",
                stage["oldest_s"],
                {"stage": name},
            )
            continue
        for host, waiting in stage["queued"].items():
            if number and waiting >= stage["bound"]:
                yield _full_queue(stage, host, waiting, span.status["stages"][number - 1]["stage"])


def _full_queue(stage: Row, host: str, waiting: int, before: str) -> Finding:
    busy = stage["slots"] - stage["slots_free"]
    name = stage["stage"]
    return Finding(
        "warning",
        "full-queue",
        f"stage {name}" + (f" on {host}" if host != "any" else ""),
        f"{name} is slower than what comes before it: {before} starts nothing new there; "
        f"{busy} of {stage['slots']} slots are busy",
        f"{waiting} rollouts wait",
        f"ready {stage['bound']}",
        f"more workers or slots for {name}; nothing is lost meanwhile",
        stage["oldest_s"],
        {"stage": name, "host": host},
    )


def clients(span: Span, _topology: Topology) -> Iterator[Finding]:
    """Find trainers that do not acknowledge, and those that are away with results waiting."""
    bound_s = PATIENCE * span.status["rules"]["heartbeat_s"]
    for client, before in span.pairs("clients", "client_id"):
        name, owed = client["client_id"], client["delivered"] + client["pending"]
        if not client["connected"]:
            if owed:
                yield Finding(
                    "notice",
                    "client-away",
                    f"client {name}",
                    f"it is not connected; {owed} results wait for it",
                    f"not heard for {seconds(client['heard_s'])}",
                    "connected",
                    "start the trainer again under the same client_id; nothing is lost",
                    client["heard_s"],
                    {"client_id": name},
                )
            continue
        full = client["pending"] and client["delivered"] >= client["window"]
        idle = before is not None and before["acked"] == client["acked"]
        if full and idle and client["oldest_s"] >= bound_s:
            yield Finding(
                "warning",
                "client-not-acknowledging",
                f"client {name}",
                f"its window is full: {client['pending']} further results wait in the broker",
                f"{client['delivered']} delivered, the oldest {seconds(client['oldest_s'])} ago, "
                "none acknowledged between two looks",
                f"window {client['window']}",
                "the trainer works on something else, or hangs; nothing is lost, and its rollouts "
                "count against limits.rollouts",
                client["oldest_s"],
                {"client_id": name},
            )


def sandboxes(span: Span, _topology: Topology) -> Iterator[Finding]:
    """Find hosts where sandboxes do not start."""
    for node, before in span.pairs("nodes", "node"):
        figures = node["figures"]
        failed = figures.get("failed", 0.0)
        if node["role"] != "sandboxes" or not failed:
            continue
        more = failed - before["figures"].get("failed", 0.0) if before else 0.0
        if more or failed > figures.get("started", 0.0):
            yield Finding(
                "critical",
                "sandboxes-failing",
                f"{node['node']} on {node['host']}",
                "sandboxes fail to start there",
                f"{failed:g} failed, {figures.get('started', 0.0):g} started",
                "none fails",
                f"logs/{node['node']}.log on {node['host']}; `rollmq images` checks the images",
                None,
                {"node": node["node"], "host": node["host"]},
            )


def losses(span: Span, _topology: Topology) -> Iterator[Finding]:
    """Find what should not happen and did between two looks."""
    expired = span.change("counts", "expired")
    if expired:
        yield Finding(
            "warning",
            "leases-expired",
            "broker",
            "leases ended without a result; their rollouts were given to others",
            f"{expired:g} in {seconds(span.seconds)}",
            "none",
            "a worker is cut off, stopped or gone: see the other findings",
        )
    for name in span.status["loop"]:
        refused = span.change("loop", name) if name.startswith("refused_on_") else 0.0
        if refused:
            yield Finding(
                "warning",
                "refused-messages",
                "broker",
                f"somebody sends what it cannot read to its {name.removeprefix('refused_on_')}",
                f"{refused:g} messages in {seconds(span.seconds)}",
                "none",
                "the log of the broker names the field; a peer of another version, or a stranger",
            )
