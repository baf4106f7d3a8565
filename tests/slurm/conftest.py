"""One cluster for all tests of Slurm, whole again before each of them, and a directory for each."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, slurm_cluster
from .site import Site


@pytest.fixture(scope="session")
def one_cluster() -> Iterator[Cluster]:
    directory = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))
    with slurm_cluster(directory) as cluster:
        yield cluster
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def cluster(one_cluster: Cluster) -> Iterator[Cluster]:
    yield one_cluster
    one_cluster.make_whole()


@pytest.fixture
def site(cluster: Cluster, short_path: Path) -> Site:
    return Site(cluster, short_path)
