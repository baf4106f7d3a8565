"""The broker's process: `python -m nodes.broker --topology FILE`."""

import argparse
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import zmq

from engine.errors import RollmqError
from engine.journal import Journal, NullJournal
from engine.ledger import ENTRIES, Ledger, Recovery, Rules, StageRule
from engine.logs import configure, get_logger
from engine.process import PARENT, die_with_parent, spare_collector, work_in_batches
from engine.records import Buffer
from engine.sampling import load_filters
from engine.security import ServerKey, domain_of_work
from engine.sockets import Bounds, bind, boot_id, open_socket
from engine.topology import Topology, load
from engine.topology.applied import begin, running
from engine.typed import compile_decoder

from ..tracing.export import open_exporter
from ..tracing.rollouts import RolloutSpans
from .access import Access, Events, open_access
from .applying import Applying
from .bodies import Bodies
from .loop import Loop, Sockets
from .peers import Connections, WorkPipes
from .shell import Served, Shell

log = get_logger()
MIN_FILES = 1024  # below this a listener at its limit spins a core


def main(arguments: list[str] | None = None) -> int:
    """Run the broker until SIGTERM or SIGINT; return the exit status."""
    die_with_parent()
    work_in_batches()
    parser = argparse.ArgumentParser(prog="python -m nodes.broker", description=__doc__)
    parser.add_argument("--topology", required=True, type=Path)
    options = parser.parse_args(arguments)
    try:
        topology = load(options.topology)
        configure("broker", topology.log_level)
        _expect_files()
        with _traced(topology) as spans:
            serve(topology, spans)
    except RollmqError as wrong:
        log.critical("broker stopped", error=str(wrong), type=type(wrong).__name__)
        return 1
    return 0


def serve(topology: Topology, spans: RolloutSpans | None = None) -> None:
    """Bind, recover from the journal, and serve until a signal.

    Raises: NodeFailed if an address is taken; JournalError if the journal cannot be used;
    KeysError.
    """
    broker_id = boot_id("broker")
    wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    if PARENT not in os.environ:  # started by hand: its file holds, as a launcher's would
        begin(topology)
    topology, applied = running(topology)
    configure("broker", topology.log_level)
    journal = _open_journal(topology, wake)
    bodies = Bodies(journal, topology.limits.memory_bytes)
    ledger = _recover(topology, journal, bodies, broker_id)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    bounds = Bounds(topology.limits.queue_messages, topology.limits.message_bytes)
    access = open_access(context, topology)
    sockets = _bind_all(context, topology, bounds, wake, access)
    trainers = Connections(sockets.front, bounds)
    workers = Connections(sockets.control, bounds)
    pipes = _pipes(context, topology, bounds, access)
    told = (sockets.events.publish, _stages(topology), broker_id, spans)
    shell = Shell(journal, bodies, trainers, workers, pipes, *told)

    def go_by(newer: Topology) -> None:
        configure("broker", newer.log_level)
        bodies.hold(newer.limits.memory_bytes)
        shell.go_by(_stages(newer))
        if access is not None:
            access.gate.go_by(newer)
        loop.go_by(newer, rules(newer))

    loop = Loop(
        sockets,
        ledger,
        shell,
        journal,
        trainers,
        workers,
        pipes,
        broker_id,
        min(0.25, topology.timeouts.heartbeat_s / 4),
        lambda: _figures(bodies, topology.run_dir),
        Applying(topology, applied, go_by),
        bounds,
        topology.timeouts.lease_s,
        access,
    )
    log.info("broker serves", broker_id=broker_id, endpoint=topology.endpoint("front"))
    try:
        _run(loop, topology.timeouts.drain_s)
    finally:
        pipes.close_all()
        if access is not None:
            access.close()
        context.destroy(linger=200)
    log.info("broker stops")


def _run(loop: Loop, drain_s: float) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    spare_collector()
    loop.run()
    loop.finish(drain_s)


@contextmanager
def _traced(topology: Topology) -> Iterator[RolloutSpans | None]:
    exporter = open_exporter(topology, "broker")
    if topology.traces is None or exporter is None:
        yield None
        return
    stages = [stage.name for stage in topology.stages]
    try:
        yield RolloutSpans(stages, topology.traces.sample, exporter.emit)
    finally:
        exporter.close()


def rules(topology: Topology) -> Rules:
    """Return what the ledger decides by."""
    limits, timeouts = topology.limits, topology.timeouts
    return Rules(
        stages=tuple(StageRule(s.name, s.attempts, s.ready, s.timeout_s) for s in topology.stages),
        heartbeat_s=timeouts.heartbeat_s,
        lease_s=timeouts.lease_s,
        retry_delay_s=timeouts.retry_delay_s,
        retention_s=limits.retention_s,
        rollouts=limits.rollouts,
        bytes=limits.bytes,
        message_bytes=limits.message_bytes,
        group=limits.group,
        client_window=limits.client_window,
        client_bytes=limits.client_bytes,
        filters=load_filters(topology.filters),
        first_seq=time.time_ns() // 1000 if topology.durability == "none" else 1,
        cancel_grace_s=timeouts.cancel_grace_s,
    )


def _stages(topology: Topology) -> list[Served]:
    return [Served(stage.name, stage.timeout_s, stage.slots) for stage in topology.stages]


def _open_journal(topology: Topology, wake: int) -> Journal | NullJournal:
    if topology.durability == "none":
        return NullJournal()
    directory = topology.run_dir / "journal"
    return Journal(directory, topology.durability, wake=lambda: os.eventfd_write(wake, 1))


def _recover(
    topology: Topology, journal: Journal | NullJournal, bodies: Bodies, broker_id: str
) -> Ledger:
    recovery = Recovery(rules(topology), broker_id, time.monotonic())
    for key, value in journal.values().items():
        recovery.value(key, orjson.loads(value))
    buffer = compile_decoder(Buffer)
    kept = 0
    for stored in journal.entries():
        header = orjson.loads(stored.header)
        recovery.entry(stored.order, ENTRIES[stored.kind](header["entry"]))
        if stored.kind in {"Acked", "Rewound"}:
            bodies.free(stored.order)
        elif stored.location is not None:
            described = tuple(buffer(item) for item in header["buffers"])
            bodies.restore(stored.order, described, stored.location)
        kept += 1
    recovery.finish()
    if kept:
        log.info("recovered", entries=kept)
    return Ledger.recovered(recovery)


def _bind_all(
    context: zmq.Context[zmq.Socket[bytes]],
    topology: Topology,
    bounds: Bounds,
    wake: int,
    access: Access | None,
) -> Sockets:
    def bound(kind: int, edge: str) -> zmq.Socket[bytes]:
        security = access.key(edge) if access else None
        socket = open_socket(context, kind, bounds, security=security)
        if access is not None:
            access.gatekeeper.watch(socket, edge)
        bind(socket, topology.endpoint(edge), lasting=True)
        return socket

    return Sockets(
        bound(zmq.ROUTER, "front"),
        bound(zmq.ROUTER, "control"),
        bound(zmq.PULL, "results"),
        Events(lambda: bound(zmq.PUB, "events")),
        wake,
    )


def _pipes(
    context: zmq.Context[zmq.Socket[bytes]],
    topology: Topology,
    bounds: Bounds,
    access: Access | None,
) -> WorkPipes:
    def key(worker_id: str) -> ServerKey | None:
        if access is None:
            return None
        return access.key(domain_of_work(access.gate.host_of(worker_id.rpartition("-")[0])))

    return WorkPipes(context, bounds, lambda worker_id: _work_endpoint(topology, worker_id), key)


def _work_endpoint(topology: Topology, worker_id: str) -> str:
    node, _, boot = worker_id.rpartition("-")
    return topology.worker_endpoint(node, boot[:8])


def _figures(bodies: Bodies, run_dir: Path) -> dict[str, Any]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "process": {
            "pid": os.getpid(),
            "rss_bytes": _resident_bytes(),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "body_bytes": bodies.resident_bytes,
            "bodies_read_back": bodies.reads,
        },
        "disk_free_bytes": shutil.disk_usage(run_dir).free,
    }


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _expect_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < MIN_FILES:
        log.warning("few file descriptors", limit=wanted)


if __name__ == "__main__":
    sys.exit(main())
