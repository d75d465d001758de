"""Jobs of more hosts than a test needs elsewhere: all begin, and end with the same reason."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import netns
from tests.harness import eventually
from tests.hosts import LAYOUTS, cluster, logs, statuses

COUNT = 12


@pytest.fixture(scope="module")
def network() -> Iterator[netns.Network]:
    """Hosts whose machines have names of their own, without which Open MPI takes them for one."""
    names = [f"algo-{number}" for number in range(1, COUNT + 1)]
    with netns.network(names, names) as made:
        yield made


@pytest.mark.timeout(300)
@pytest.mark.parametrize("leader_comes", ["first", "last"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_hosts_begin_together_and_end_with_the_failure_of_one(
    network: netns.Network, tmp_path: Path, layout: str, leader_comes: str
) -> None:
    if layout == "MPI" and not (network.isolated and shutil.which("mpirun")):
        pytest.skip("needs network namespaces and Open MPI")
    with cluster(tmp_path, network) as made:
        numbers = range(COUNT) if leader_comes == "first" else range(COUNT - 1, -1, -1)
        made.lay_out(layout).start(*numbers)

        def have_begun() -> bool:
            ended = [one for one in made.running.values() if one.process.poll() is not None]
            assert not ended, bytes(ended[0].err).decode()
            return len(made.times("began")) == COUNT

        eventually(have_begun, "all scripts have begun", 120)
        made.fail()
        results = made.wait()
        found = made.failures()
    assert statuses(results) == [3] * COUNT, logs(results)
    rank = COUNT - 1 if layout == "MPI" else None
    assert found["host"] == made.hosts[-1].name
    assert (found["exit"], found.get("rank")) == (3, rank)
