"""The topology file of each host of an allocation.

Job: say a topology again with the addresses of the allocation's nodes and each host's run
directory, so that what is started from it needs to know nothing of Slurm.
Does not know: Slurm, or how a file is started.
Invariants: what was relative to the topology's file still is; nothing else changes. One host
whose keys were not made needs no address: its processes talk over IPC.
"""

from collections.abc import Mapping
from pathlib import Path

import yaml

from ..security import LIST_NAME
from ..topology import Topology, resolved


def resolve(topology: Topology, addresses: Mapping[str, str], run_dir: Path) -> str:
    """Return the text of a topology file.

    addresses: the IP address of each host. run_dir: absolute, for the host that starts from it.
    """
    said = resolved(topology)
    has_keys = topology.keys is not None and (topology.keys / LIST_NAME).exists()
    if len(addresses) > 1 or has_keys:
        for host, address in addresses.items():
            said["hosts"][host]["address"] = address
    said["run_dir"] = str(run_dir)
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=100)
