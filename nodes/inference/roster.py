"""What the router has to know again after a restart: added backends, drains, removals, weights.

Job: keep it in one JSON file of the run directory, and write for each added backend a topology file
of its own, so that its process starts like any other.
Does not know: processes, or when a backend may be used.
Invariants: the file is replaced as a whole, never half written. An added backend satisfies every
rule of topology.yaml, because its file is loaded before it is kept.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import orjson

from engine.errors import NodeFailed
from engine.files import draft_of, write_whole
from engine.topology import BackendSpec, Topology, load, resolved_yaml
from engine.typed import AtLeast, Count, Id, Mismatch, Text, compile_decoder

from .updates import Weights

FILE_NAME = "backends.json"


@dataclass(frozen=True, slots=True)
class Added:
    """A backend that was added while the router ran; `options` is JSON text."""

    name: Id
    kind: Id
    capacity: Annotated[int, AtLeast(1)]
    options: Text = "{}"

    @property
    def node(self) -> str:
        """The name of its one process."""
        return f"{self.name}-0"


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """The weights of the last publish."""

    policy_version: Count
    source: Text
    update_id: Id


@dataclass(frozen=True, slots=True)
class Kept:
    """The file as a record."""

    added: tuple[Added, ...] = ()
    drained: tuple[Id, ...] = ()
    removed: tuple[Id, ...] = ()
    weights: PublishedWeights | None = None


_KEPT = compile_decoder(Kept)


@dataclass(slots=True)
class Roster:
    """The file's content, and the topology that it adds to."""

    topology: Topology
    kept: Kept = field(default_factory=Kept)

    @classmethod
    def read(cls, topology: Topology) -> "Roster":
        """Return what the run directory has.

        Raises: NodeFailed if the file is there and cannot be read.
        """
        path = topology.run_dir / FILE_NAME
        if not path.exists():
            return cls(topology)
        try:
            return cls(topology, _KEPT(orjson.loads(path.read_bytes())))
        except (OSError, orjson.JSONDecodeError, Mismatch) as wrong:
            raise NodeFailed(f"{path} cannot be read: {wrong}") from None

    @property
    def weights(self) -> Weights | None:
        """The weights of the last publish."""
        kept = self.kept.weights
        if kept is None:
            return None
        return Weights(kept.policy_version, kept.source, kept.update_id)

    def nodes(self) -> tuple[str, ...]:
        """Return the names of all backends' processes, of the topology and added."""
        own = [node.name for node in self.topology.nodes() if node.role == "backend"]
        return (*own, *(added.node for added in self.kept.added))

    def find(self, name: str) -> Added | None:
        """Return the added backend of that name, or of that process."""
        return next((each for each in self.kept.added if name in {each.name, each.node}), None)

    def fresh_name(self) -> str:
        """Return a name that no backend and no stage has."""
        taken = {added.name for added in self.kept.added}
        taken |= {backend.name for backend in self.topology.backends}
        taken |= {stage.name for stage in self.topology.stages}
        return next(name for n in range(1, 1 << 20) if (name := f"added{n}") not in taken)

    def file(self, added: Added) -> Path:
        """Return where the topology file of an added backend is."""
        return self.topology.run_dir / "added" / f"{added.name}.yaml"

    def add(self, added: Added) -> None:
        """Keep a backend more.

        Raises: TopologyError if it breaks a rule of topology.yaml; OSError.
        """
        self.write_topology(added)
        self.change(added=(*self.kept.added, added))

    def write_topology(self, added: Added) -> None:
        """Write the topology file that the process of an added backend loads.

        Raises: TopologyError, OSError.
        """
        assert self.topology.router is not None
        host, options = self.topology.router.host, orjson.loads(added.options)
        spec = BackendSpec(added.name, added.kind, host, 1, added.capacity, options)
        backends = (*self.topology.backends, spec)
        path = self.file(added)
        path.parent.mkdir(exist_ok=True)
        text = resolved_yaml(replace(self.topology, backends=backends))
        with draft_of(path) as draft:
            draft.write_text(text, encoding="utf-8")
            load(draft)

    def change(self, **changes: Any) -> None:
        """Replace parts of what is kept, in the file and here. Raises: OSError."""
        kept = replace(self.kept, **changes)
        text = orjson.dumps(kept, option=orjson.OPT_INDENT_2)
        write_whole(self.topology.run_dir / FILE_NAME, text, sync=True)
        self.kept = kept
