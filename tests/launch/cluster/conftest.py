"""The cluster, started once, and runs on it."""

from collections.abc import Iterator

import pytest

from tests.launch.cluster.cluster import Cluster, missing_programs, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes; skips, with the reason, where Slurm is not installed."""
    if missing := missing_programs():
        pytest.skip(f"no {', '.join(missing)}: apt-get install -y slurm-wlm munge")
    with running_cluster(2) as running:
        yield running
