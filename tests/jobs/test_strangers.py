"""A client on the network of a job that is none of its hosts connects to its port."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import hosts, netns
from tests.harness import eventually
from tests.hosts import HELLO, WAITS, Cluster, logs, statuses

PORT = 7117

HOLD = """
import signal, socket, sys
found = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) for _ in range(100)]
print("connected", flush=True)
signal.pause()
"""
"""Holds a hundred connections, and sends nothing."""


# -- what a client may send --------------------------------------------------------------------


# -- jobs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Iterator[netns.Network]:
    with netns.network(["algo-1", "algo-2", "stranger"]) as made:
        yield made


@pytest.fixture(params=["secret", "no secret"])
def cluster(
    network: netns.Network, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    if not network.isolated and request.param == "no secret":
        pytest.fail("needs network namespaces: a client has an address of its own")
    with hosts.cluster(tmp_path, network, 2) as made:
        if request.param == "no secret":
            for base in made.bases:
                del base.environ["SM_RUNTIME_CLUSTER_SECRET"]
        yield made


@contextmanager
def held_connections(cluster: Cluster) -> Iterator[None]:
    """Hold a hundred connections to the leader, from a machine that is no host."""
    prefix, address = cluster.network.hosts[2].prefix, cluster.hosts[0].address
    argv = [*prefix, sys.executable, "-c", HOLD, address, str(PORT)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == b"connected\n"
            yield
        finally:
            process.kill()


def waiting_leader(cluster: Cluster) -> None:
    """Start the leader, which waits for the other host and listens."""
    cluster.script(HELLO).start(0)
    leader = cluster.hosts[0]
    eventually(lambda: (leader.address, PORT) in leader.listeners(), "the leader listens", 60)


def test_a_hundred_connections_that_are_held_keep_no_host_out(cluster: Cluster) -> None:
    waiting_leader(cluster)
    with held_connections(cluster):
        results = cluster.start(1).wait()
    assert statuses(results) == [0, 0], logs(results)


def test_nothing_listens_any_more_when_all_hosts_are_there(cluster: Cluster) -> None:
    cluster.script(WAITS).start().ready()
    for host in cluster.hosts:
        assert not [port for _, port in host.listeners() if PORT <= port < PORT + 10]
    for running in cluster.running.values():
        running.process.terminate()
    results = cluster.wait()
    assert statuses(results) == [0, 0], logs(results)


def test_the_leader_listens_on_the_jobs_interface_only(cluster: Cluster) -> None:
    waiting_leader(cluster)
    leader = cluster.hosts[0]
    assert {address for address, port in leader.listeners() if port == PORT} == {leader.address}
    results = cluster.start(1).wait()
    assert statuses(results) == [0, 0], logs(results)
