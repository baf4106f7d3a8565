"""The topology that runs, kept beside the journal: its text and its revision.

Job: begin with a file's topology, keep what is applied later, and read it again after a restart of
the broker; write the file that one node reads.
Does not know: what may change while it runs, or who asks for it.
Invariants: a revision belongs to one text; it grows by one with each text that differs. The file
is replaced as a whole, and on disk before anybody is told of it.
"""

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import orjson

from ..errors import NodeFailed
from ..files import write_whole
from ..typed import Count, Mismatch, compile_decoder
from .file import load_text, resolved_yaml
from .records import Topology

FILE_NAME = "applied.json"


@dataclass(frozen=True, slots=True)
class Applied:
    """A revision and its text, YAML with every default written out."""

    revision: Count
    text: str

    @property
    def mark(self) -> int:
        """Return a number of 32 bits that other texts hardly share."""
        return crc32(self.text.encode())


_READ = compile_decoder(Applied)


def begin(topology: Topology) -> Applied:
    """Return what runs from now on: a launcher's file holds, whatever was applied before it.

    Raises: NodeFailed if what was applied before cannot be read; OSError.
    """
    before = kept(topology)
    text = resolved_yaml(topology)
    if before is not None and before.text == text:
        return before
    return keep(topology, text)


def keep(topology: Topology, text: str) -> Applied:
    """Keep a text under the next revision, for a topology's run directory.

    Raises: NodeFailed if what was applied before cannot be read; OSError.
    """
    before = kept(topology)
    applied = Applied(before.revision + 1 if before else 1, text)
    topology.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(topology.run_dir / FILE_NAME, orjson.dumps(applied), mode=0o600, sync=True)
    return applied


def kept(topology: Topology) -> Applied | None:
    """Return what was applied last, None if nothing was. Raises: NodeFailed."""
    path = topology.run_dir / FILE_NAME
    try:
        applied: Applied = _READ(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, orjson.JSONDecodeError, Mismatch) as wrong:
        raise NodeFailed(f"{path} cannot be read: {wrong}") from None
    return applied


def running(topology: Topology) -> tuple[Topology, Applied]:
    """Return the topology that was applied last, or the one given if nothing was.

    Raises: NodeFailed, TopologyError, OSError.
    """
    applied = kept(topology) or begin(topology)
    return read(applied, topology), applied


def read(applied: Applied, topology: Topology) -> Topology:
    """Return an applied text as a topology, its file being that of `topology`.

    Raises: TopologyError.
    """
    return load_text(applied.text, topology.path, f"revision {applied.revision}")


def node_file(topology: Topology, node: str) -> Path:
    """Return where the file is that one node reads."""
    return topology.run_dir / "nodes" / f"{node}.yaml"


def write_node_file(topology: Topology, node: str, text: str) -> Path:
    """Write the file that one node reads, and return its path. Raises: OSError."""
    path = node_file(topology, node)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, text.encode(), mode=0o600)
    return path
