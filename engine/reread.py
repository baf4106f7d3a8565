"""Nodes that read their topology file again when they are told to, by SIGHUP.

Job: on SIGHUP read the file, set the log level by it, and hand the rest to whoever wants it.
Does not know: who writes the file, or what a node makes of it.
Invariants: a file that cannot be read changes nothing; the node goes on by what it had.
"""

import signal
from collections.abc import Callable
from pathlib import Path

from .errors import RollmqError
from .logs import configure, get_logger
from .topology import Topology, load

log = get_logger()


def reread_on_hangup(
    path: str | Path, node: str, take: Callable[[Topology], None] | None = None
) -> None:
    """Read the topology of `path` again whenever SIGHUP comes; call it from the main thread.

    take: is called from the signal's handler with what was read, so it must only keep it.
    """

    def reread(_number: int, _frame: object) -> None:
        try:
            topology = load(path)
        except RollmqError as wrong:
            log.warning("topology not read again", error=str(wrong))
            return
        configure(node, topology.log_level)
        log.info("topology read again", file=str(path))
        if take is not None:
            take(topology)

    signal.signal(signal.SIGHUP, reread)
