"""Findings about workers, backends and other nodes: who hangs, stalls, is stopped or not there.

Job: one rule for each way in which a process can fail to do its part.
Does not know: sockets, clocks or terminals.
Invariants: a process that does not answer is reported once: hung, stopped or silent, not twice.
"""

from collections.abc import Iterator

from ..topology import Topology
from .found import Finding, seconds
from .rates import Row, Span, typical_s

MISSED = 2.5  # heartbeats that a worker may miss before it is reported
SLOW_LOOP_S = 0.25  # every heartbeat, cancel and result behind it waits so long
STALLED = 5.0  # heartbeats that a backend may run requests without a token
SHARE_OF_TIMEOUT = 0.5
USUAL = 10.0  # times the 99th percentile of its stage: unusual
FEW = 20  # attempts from which on a stage has a usual duration
PATIENCE_S = 30.0  # no attempt is unusual before


def workers(span: Span, _topology: Topology) -> Iterator[Finding]:
    """Find workers that do not answer, and what they hold up."""
    heartbeat_s = span.status["rules"]["heartbeat_s"]
    for worker in span.status["workers"]:
        if worker["heard_s"] > MISSED * heartbeat_s:
            yield _silent(span, worker)
        elif worker["lag_s"]:
            yield _hung(span, worker) if worker["culprit"] else _stopped(worker)


def _silent(span: Span, worker: Row) -> Finding:
    rules = span.status["rules"]
    over = worker["heard_s"] >= rules["lease_s"]
    held = "it holds none"
    if worker["leased"]:
        left_s = worker["lease_left_s"]
        left = "its leases are over" if over else f"its leases end in {seconds(left_s)}"
        held = f"it holds {worker['leased']} rollouts, {left}"
    return Finding(
        "critical" if over or worker["leased"] else "warning",
        "silent-worker",
        f"{worker['node']} on {worker['host']}",
        f"no heartbeat comes from it: stopped, cut off or gone; {held}",
        f"{seconds(worker['heard_s'])} without a heartbeat",
        f"one each {seconds(rules['heartbeat_s'])}, lease {seconds(rules['lease_s'])}",
        "look on its host whether its processes run or are stopped, and whether the network holds; "
        "its rollouts are given to others once the leases are over",
        worker["heard_s"],
        _about(worker),
    )


def _hung(span: Span, worker: Row) -> Finding:
    culprit = worker["culprit"]
    timeout_s = _stage(span, worker["stage"])["timeout_s"]
    others = worker["leased"] - 1
    stuck = f", and {others} other rollouts with it" if others else ""
    return Finding(
        "critical",
        "hung-handler",
        f"{worker['node']} on {worker['host']}",
        f"rollout {culprit['rollout_id']}, stage {worker['stage']}, attempt {culprit['attempt']}: "
        f"its code does not let the worker's event loop go on{stuck}",
        f"the loop stands still for {seconds(worker['lag_s'])}, "
        f"{seconds(culprit['leased_s'])} after dispatch",
        f"timeout_s {seconds(timeout_s)}, then the process is killed and the attempt has failed",
        f"cancel the rollout, or wait; the stacks are then in logs/{worker['node']}.log; make the "
        "handler a plain function (it gets a thread) or await what blocks",
        worker["lag_s"],
        {**_about(worker), "rollout_id": culprit["rollout_id"], "attempt": culprit["attempt"]},
    )


def _stopped(worker: Row) -> Finding:
    return Finding(
        "critical",
        "stopped-host",
        f"{worker['node']} on {worker['host']}",
        f"the process that runs its handlers does not answer, and no handler's code can be named: "
        f"stopped, swapped out or starved; {worker['leased']} rollouts wait",
        f"the loop stands still for {seconds(worker['lag_s'])}",
        "it answers within a second",
        "look on its host whether `python -m nodes.stage.host` is stopped (state T) or has no "
        "processor time",
        worker["lag_s"],
        _about(worker),
    )


def attempts(span: Span, _topology: Topology) -> Iterator[Finding]:
    """Find attempts that take unusually long for their stage, or half of their time already."""
    hung = {w["culprit"]["rollout_id"] for w in span.status["workers"] if w["culprit"]}
    silent = {w["node"] for w in span.status["workers"] if w["silent"] or w["lag_s"]}
    for wait in span.status["waits"]:
        if wait["state"] != "leased" or wait["rollout_id"] in hung:
            continue
        stage = _stage(span, wait["stage"])
        bound_s = _unusual_s(stage)
        node, _, host = wait["owner"].partition(" on ")
        if wait["since_s"] < bound_s or node in silent:
            continue
        usual = typical_s(stage["duration"], 0.5)
        half = f"half of this stage's take {seconds(usual)} at most" if usual else "none has ended"
        yield Finding(
            "warning",
            "slow-attempt",
            wait["owner"],
            f"rollout {wait['rollout_id']}, stage {wait['stage']}, attempt {wait['attempt']}: "
            "its handler goes on and on; it may wait for something that does not come",
            f"{seconds(wait['since_s'])} since dispatch; {half}",
            f"{seconds(bound_s)}; the attempt is ended at timeout_s {seconds(stage['timeout_s'])}",
            f"`rollmq doctor --rollout {wait['rollout_id']}`; cancel it, or lower timeout_s",
            wait["since_s"],
            {
                "node": node,
                "host": host,
                "stage": wait["stage"],
                "rollout_id": wait["rollout_id"],
                "attempt": wait["attempt"],
            },
        )


def _unusual_s(stage: Row) -> float:
    half = SHARE_OF_TIMEOUT * float(stage["timeout_s"])
    p99 = typical_s(stage["duration"], 0.99)
    if p99 is None or sum(stage["duration"]["counts"]) < FEW:
        return half
    return min(half, max(PATIENCE_S, USUAL * p99))


def backends(span: Span, _topology: Topology) -> Iterator[Finding]:
    """Find backends that run requests without a token, and those that are not open."""
    heartbeat_s = span.status["rules"]["heartbeat_s"]
    bound_s = STALLED * heartbeat_s
    for router in span.status["nodes"]:
        parts = router["parts"] if router["role"] == "router" else []
        nobody = bool(parts) and not any(part["state"] == "open" for part in parts)
        for part in parts:
            figures = part["figures"]
            if figures.get("stalled_s", 0.0) >= bound_s:
                yield _stalled(part, bound_s)
            elif not part["state"].startswith("open"):
                yield Finding(
                    "critical" if nobody else "warning",
                    "backend-not-open",
                    part["name"],
                    f"it is {part['state']}: no session is placed on it",
                    part["state"],
                    "open",
                    "`rollmq backends list` says why; its log is in logs/ of its host",
                    None,
                    {"backend": part["name"], "state": part["state"]},
                )


def _stalled(part: Row, bound_s: float) -> Finding:
    figures = part["figures"]
    return Finding(
        "critical",
        "stalled-backend",
        part["name"],
        f"it says that it is alive and runs {figures['running']:g} requests, and samples no token; "
        f"{figures['sessions']:g} sessions stay on it, {figures['waiting']:g} requests wait",
        f"{figures['tokens']:g} tokens for {seconds(figures['stalled_s'])}",
        f"{seconds(bound_s)} without a token",
        f"`rollmq backends remove TOPOLOGY {part['name']}` sends its sessions elsewhere; then "
        "restart it and look into its log",
        figures["stalled_s"],
        {"backend": part["name"], "running": figures["running"]},
    )


def presence(span: Span, topology: Topology) -> Iterator[Finding]:
    """Find nodes of the topology that nobody hears, and hosts without any."""
    heard: dict[str, Row] = {row["node"]: row for row in span.status["nodes"]}
    lease_s = span.status["rules"]["lease_s"]
    for node in heard.values():
        if node["heard_s"] > lease_s:
            yield Finding(
                "critical",
                "silent-node",
                f"{node['node']} on {node['host']}",
                f"the {node['role']} was here, and is not heard any more",
                f"{seconds(node['heard_s'])} without a word",
                f"lease {seconds(lease_s)}",
                f"logs/{node['node']}.log on {node['host']}; its launcher restarts what ends",
                node["heard_s"],
                {"node": node["node"], "host": node["host"]},
            )
    names = {"broker", *heard, *(worker["node"] for worker in span.status["workers"])}
    for host in topology.hosts:
        here = [node for node in topology.nodes(host.name) if node.role != "broker"]
        missing = [node.name for node in here if node.name not in names]
        if missing:
            yield _missing(host.name, missing, alone=len(missing) == len(here))


def _missing(host: str, missing: list[str], *, alone: bool) -> Finding:
    listed = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    start = f"start its launcher there: `rollmq up TOPOLOGY --host {host}`"
    return Finding(
        "critical" if alone else "warning",
        "host-not-there" if alone else "missing-node",
        host,
        f"nothing of this host is heard: {listed}" if alone else f"not heard: {listed}",
        f"{len(missing)} of its processes are missing",
        "every process of the topology",
        start if alone else f"logs/{missing[0]}.log on {host} says why",
        None,
        {"host": host, "nodes": missing},
    )


def loops(span: Span, _topology: Topology) -> Iterator[Finding]:
    """Find event loops that let others wait."""
    found = [("broker", "", span.status["loop"].get("lag_s", 0.0))]
    for worker in span.status["workers"]:
        lag_s = 0.0 if worker["lag_s"] else worker["loop_s"]
        found.append((worker["node"], worker["host"], lag_s))
    found += [
        (node["node"], node["host"], node["figures"].get("loop_lag_s", 0.0))
        for node in span.status["nodes"]
    ]
    for name, host, lag_s in found:
        if lag_s >= SLOW_LOOP_S:
            yield Finding(
                "warning",
                "slow-loop",
                f"{name} on {host}" if host else name,
                "its event loop was late: everything that it answers waits",
                f"{seconds(lag_s)} at worst, of late",
                seconds(SLOW_LOOP_S),
                "its host has too little processor time for what it runs, or a handler computes "
                "in the loop: spread it over more workers, or make it a plain function",
                None,
                {"node": name, "host": host, "lag_s": lag_s},
            )


def _stage(span: Span, name: str) -> Row:
    return next(stage for stage in span.status["stages"] if stage["stage"] == name)


def _about(worker: Row) -> Row:
    return {name: worker[name] for name in ("node", "host", "stage", "worker_id")}
