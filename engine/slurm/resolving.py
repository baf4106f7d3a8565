"""The topology file of each host of an allocation.

Job: say a topology again with the addresses of the allocation's nodes and each host's run
directory, so that what is started from it needs to know nothing of Slurm.
Does not know: Slurm, or how a file is started.
Invariants: what was relative to the topology's file is absolute; nothing else changes. One host
without keys needs no address: its processes talk over IPC.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..topology import Topology, resolved


def resolve(topology: Topology, addresses: Mapping[str, str], run_dir: Path) -> str:
    """Return the text of a topology file.

    addresses: the IP address of each host. run_dir: absolute, for the host that starts from it.
    """
    said = resolved(topology)
    if len(addresses) > 1 or said.get("keys"):
        for host, address in addresses.items():
            said["hosts"][host]["address"] = address
    said["run_dir"] = str(run_dir)
    directory = topology.path.parent
    for backend in said["backends"]:
        backend["options"] = _absolute(backend["options"], directory)
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=100)


def _absolute(value: Any, directory: Path) -> Any:
    """Take a text for a path if there is such a thing, as backends do with their options."""
    if isinstance(value, dict):
        return {key: _absolute(each, directory) for key, each in value.items()}
    if isinstance(value, str) and value and "\0" not in value and (directory / value).exists():
        return str(directory / value)
    return value
