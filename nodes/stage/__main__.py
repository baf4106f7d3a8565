"""A stage worker's process: `python -m nodes.stage --topology FILE --name NODE`."""

import argparse
import signal
import sys
from pathlib import Path

from engine.errors import RollmqError
from engine.logs import configure, get_logger
from engine.process import die_with_parent
from engine.reread import reread_on_hangup
from engine.topology import load

from .guardian import Guardian

log = get_logger()


def main(arguments: list[str] | None = None) -> int:
    """Serve a stage until SIGTERM or SIGINT, then drain; return the exit status."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m nodes.stage", description=__doc__)
    parser.add_argument("--topology", required=True, type=Path)
    parser.add_argument("--name", required=True, help="the node's name, such as run-0")
    options = parser.parse_args(arguments)
    try:
        topology = load(options.topology)
        configure(options.name, topology.log_level)
        guardian = Guardian(topology, options.name)
    except RollmqError as wrong:
        log.critical("worker stopped", error=str(wrong))
        return 1
    reread_on_hangup(options.topology, options.name, guardian.reread)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: guardian.drain())
    guardian.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
