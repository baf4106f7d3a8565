"""The exporter's process: `python -m nodes.metrics --topology FILE --name metrics`.

Job: serve `GET /metrics`, say hello to the broker, end at a signal.
Does not know: which figures there are.
Invariants: it listens where the topology says and nowhere else; a broker that is away ends nothing.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import zmq
from prometheus_client import start_http_server
from prometheus_client.registry import CollectorRegistry

from engine.client.viewer import Viewer
from engine.errors import NodeFailed, RollmqError
from engine.logs import configure, get_logger
from engine.presence import Presence
from engine.process import die_with_parent
from engine.reread import reread_on_hangup
from engine.sockets import boot_id
from engine.topology import Topology, load

from .exporter import StatusCollector

TURN_S = 0.1
log = get_logger()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m nodes.metrics", description=__doc__)
    parser.add_argument("--topology", required=True, type=Path)
    parser.add_argument("--name", default="metrics")
    options = parser.parse_args(arguments)
    over = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    try:
        topology = load(options.topology)
        configure(options.name, topology.log_level)
        reread_on_hangup(options.topology, options.name)
        serve(topology, options.name, over)
    except RollmqError as wrong:
        log.critical("exporter stopped", error=str(wrong))
        return 1
    return 0


def serve(topology: Topology, name: str, over: Event) -> None:
    """Serve until `over`. Raises: NodeFailed if the address is taken; KeysError."""
    spec = topology.metrics
    if spec is None:
        raise NodeFailed("the topology has no metrics")
    with Viewer.of_node(topology, name) as viewer:
        collector = StatusCollector(viewer.look)
        registry = CollectorRegistry()
        registry.register(collector)
        try:
            server, thread = start_http_server(spec.port, spec.bind, registry)
        except OSError as wrong:
            raise NodeFailed(f"cannot listen on {spec.bind}:{spec.port}: {wrong}") from None
        log.info("metrics", address=spec.bind, port=spec.port)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        presence = Presence(context, topology, name, boot_id(name), "metrics")
        while not over.wait(TURN_S):
            presence.beat(time.monotonic(), dict(collector.counts))
        presence.close()
        context.destroy(linger=200)
        server.shutdown()
        thread.join(timeout=5.0)
        server.server_close()


if __name__ == "__main__":
    sys.exit(main())
